import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonNull;
import com.google.gson.ToNumberPolicy;
import java.io.InputStreamReader;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.commons.lang.StringEscapeUtils;
import org.apache.velocity.VelocityContext;
import org.apache.velocity.app.VelocityEngine;
import org.apache.velocity.runtime.log.NullLogChute;

/** Mapping templates on Apache Velocity itself: a list of cases on standard input, of their results on standard output.
 *
 * A case has the template, the body, the whole body as $input.json gives it, the parameters and the context. A result
 * has the text and the context as the template leaves it: first where JSON's null is Java's, then where it is a thing
 * whose text is "null".
 */
public class Velocity {
    static final Gson JSON =
            new GsonBuilder().serializeNulls().setObjectToNumberStrategy(ToNumberPolicy.LONG_OR_DOUBLE).create();

    @SuppressWarnings("unchecked")
    static Object parsed(String text, boolean nullIsAThing) {
        Object value = JSON.fromJson(text, Object.class);
        if (nullIsAThing && value instanceof Map)
            ((Map<String, Object>) value).replaceAll((name, each) -> each == null ? JsonNull.INSTANCE : each);
        return value;
    }

    public static class Input {
        private final Map<String, Object> given;
        private final boolean nullIsAThing;

        Input(Map<String, Object> given, boolean nullIsAThing) {
            this.given = given;
            this.nullIsAThing = nullIsAThing;
        }

        public String getBody() {
            return (String) given.get("body");
        }

        public Object params() {
            return given.get("params");
        }

        public Object json(String path) {
            if (!path.equals("$")) throw new IllegalArgumentException(path);
            return given.get("json");
        }

        /** At "$.name" alone, which is what the templates ask for. */
        public Object path(String path) {
            if (!path.matches("\\$\\.\\w+")) throw new IllegalArgumentException(path);
            return ((Map<?, ?>) parsed(getBody(), nullIsAThing)).get(path.substring(2));
        }
    }

    public static class Util {
        private final boolean nullIsAThing;

        Util(boolean nullIsAThing) {
            this.nullIsAThing = nullIsAThing;
        }

        public String escapeJavaScript(String text) {
            return StringEscapeUtils.escapeJavaScript(text);
        }

        public Object parseJson(String text) {
            return parsed(text, nullIsAThing);
        }
    }

    @SuppressWarnings("unchecked")
    static List<Object> rendered(VelocityEngine engine, String written, boolean nullIsAThing) throws Exception {
        Map<String, Object> given = (Map<String, Object>) JSON.fromJson(written, Object.class);
        VelocityContext names = new VelocityContext();
        names.put("input", new Input(given, nullIsAThing));
        names.put("util", new Util(nullIsAThing));
        names.put("context", given.get("context"));
        StringWriter text = new StringWriter();
        engine.evaluate(names, text, "template", (String) given.get("template"));
        return List.of(text.toString(), given.get("context"));
    }

    public static void main(String[] arguments) throws Exception {
        VelocityEngine engine = new VelocityEngine();
        engine.setProperty("runtime.log.logsystem.class", NullLogChute.class.getName());
        engine.init();
        List<Object> results = new ArrayList<>();
        for (Object each : JSON.fromJson(new InputStreamReader(System.in, StandardCharsets.US_ASCII), List.class)) {
            String written = JSON.toJson(each);
            results.add(List.of(rendered(engine, written, false), rendered(engine, written, true)));
        }
        StringBuilder ascii = new StringBuilder(); // half of a surrogate pair has no UTF-8
        for (char c : JSON.toJson(results).toCharArray()) ascii.append(c < 128 ? c : String.format("\\u%04x", (int) c));
        System.out.print(ascii);
    }
}
