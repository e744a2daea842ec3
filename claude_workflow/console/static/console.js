"use strict";
// What is looked at again and again stays as its reader left it, and is not asked for while nobody looks.
let open = [];
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.detail.requestConfig.verb === "get" && event.target.matches("[hx-trigger^=every]")) {
    event.preventDefault();
  }
});
document.addEventListener("htmx:beforeSwap", (event) => {
  open = [...event.detail.target.querySelectorAll("details[open][id]")].map((each) => each.id);
});
document.addEventListener("htmx:afterSwap", () => {
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
});
