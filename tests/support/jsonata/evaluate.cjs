// JSONata by its own implementation, in the version whose rules Step Functions follows: a line with an expression, a
// line with its value. What is undefined is null here; who asks tells the two apart by $exists.
const jsonata = require("jsonata");

require("readline")
  .createInterface({ input: process.stdin })
  .on("line", async (line) => {
    let answer;
    try {
      answer = { value: (await jsonata(JSON.parse(line)).evaluate(null)) ?? null };
    } catch (error) {
      answer = { error: error.message };
    }
    console.log(JSON.stringify(answer));
  });
