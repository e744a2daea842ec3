"""Texts that something on the way would like to take for its own."""

NASTY = (
    "\"quotes\" 'single' \\ \\' \\\" @@ $foo ${bar} $!baz #set($x = 1) ## #* *# {% $y %} "
    "\u2028\u2029 \t\r\n é 😀 \x7f /\\/"
)
