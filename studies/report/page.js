"use strict";

// The plotting library lies in the page, compressed; nothing is fetched.
async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

// Colours are named after CSS variables, which differ between light and dark.
function readFigures() {
  const style = getComputedStyle(document.documentElement);
  const text = document.getElementById("figures").textContent;
  return JSON.parse(text.replace(/"var\((--[\w-]+)\)"/g, (_, name) =>
    JSON.stringify(style.getPropertyValue(name).trim().replaceAll('"', "'"))));
}

function draw() {
  for (const [name, figure] of Object.entries(readFigures())) {
    const place = document.getElementById(`plot-${name}`);
    const layout = place.clientWidth < 620 ? figure.narrow : figure.wide;
    Plotly.react(place, figure.traces, layout, { displayModeBar: false, responsive: true });
  }
}

function sortTable(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const numeric = header.classList.contains("number");
  const key = row => row.children[column].dataset.value;
  const compare = (a, b) => numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return descending ? compare(y, x) : compare(x, y);
  });
  table.tBodies[0].append(...rows);
}

// A file that the page itself holds; nothing is fetched.
function saveData(name) {
  const text = JSON.parse(document.getElementById("downloads").textContent)[name];
  const link = document.createElement("a");
  // The mark at the start tells spreadsheets the encoding.
  link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" }));
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

for (const button of document.querySelectorAll(".download[data-name]"))
  button.addEventListener("click", () => saveData(button.dataset.name));
for (const header of document.querySelectorAll("th"))
  header.querySelector("button").addEventListener("click", () => sortTable(header));
loadPlotly().then(() => {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) { width = innerWidth; draw(); }
  });
  document.documentElement.dataset.drawn = "";
});
