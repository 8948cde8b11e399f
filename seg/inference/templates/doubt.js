"use strict";
const rows = JSON.parse(document.getElementById("table").textContent);
const accept = rows[0].indexOf("accept");
const cards = [...document.querySelectorAll("article")];
let current = -1;
let saved = true;

function show(number) {
  if (!cards.length) return;
  current = Math.min(Math.max(number, 0), cards.length - 1);
  cards.forEach((card, i) => card.classList.toggle("current", i === current));
  cards[current].scrollIntoView({ block: "start" });
}

function mark(card) {
  const word = rows[Number(card.dataset.row) + 1][accept];
  for (const button of card.querySelectorAll("button")) {
    const seen = card.dataset.seen === "yes" || word !== "";
    button.setAttribute("aria-pressed", String(seen && button.dataset.word === word));
  }
  const counts = ["ignore", "class"].map((w) => rows.slice(1).filter((r) => r[accept] === w).length);
  document.getElementById("count").textContent = `${counts[0]} ignored, ${counts[1]} changed` + (saved ? "" : "; not saved");
}

function choose(card, word) {
  if (!card.querySelector(`button[data-word="${word}"]`)) return;
  rows[Number(card.dataset.row) + 1][accept] = word;
  card.dataset.seen = "yes";
  saved = false;
  mark(card);
}

function cell(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save() {
  const text = rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "reviewed.csv";
  link.click();
  URL.revokeObjectURL(link.href);
  saved = true;
  cards.forEach(mark);
}

for (const card of cards) {
  mark(card);
  for (const button of card.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      show(cards.indexOf(card));
      choose(card, button.dataset.word);
      button.blur();
    });
  }
}
document.getElementById("save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const words = { i: "ignore", c: "class", " ": "" };
  if (event.key === "j" || event.key === "ArrowDown") show(current + 1);
  else if (event.key === "k" || event.key === "ArrowUp") show(current - 1);
  else if (event.key === "s") save();
  else if (event.key in words && current >= 0) choose(cards[current], words[event.key]);
  else return;
  event.preventDefault();
});
window.addEventListener("beforeunload", (event) => {
  if (!saved) event.preventDefault();
});
show(0);
