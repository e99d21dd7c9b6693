"use strict";
// The token is sent in a body, once; what stays is a cookie that no script can read.

const form = document.getElementById("login");
const token = document.getElementById("token");
const said = document.getElementById("said");

async function show() {
  said.textContent = "";
  try {
    const answer = await fetch("/login", { method: "POST", body: token.value, headers: { "Content-Type": "text/plain" } });
    if (answer.ok) {
      token.value = "";
      location.replace("/");
      return;
    }
    said.textContent = await answer.text();
  } catch {
    said.textContent = "The dashboard does not answer.";
  }
  token.select();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
