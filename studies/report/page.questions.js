"use strict";

// The browser of questions: what the page holds, compressed, becomes text nodes, a screenful at a time.
const PAGE_SIZE = 20;

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function readQuestions() {
  const packed = Uint8Array.from(atob(document.getElementById("questions-data").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

class QuestionBrowser {
  constructor(root, data) {
    Object.assign(this, { root, authors: data.authors, questions: data.questions, page: 0 });
    this.shown = new Set(data.authors.keys());
    for (const asked of this.questions)
      asked.haystack = [asked.id, asked.question, ...asked.writings.map(writing => writing?.[0] ?? "")].join("\n").toLowerCase();
    this.control = name => root.querySelector(`[data-control=${name}]`);
    this.chooseAuthors();
    let timer;
    this.control("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => this.filter(), 120); });
    for (const name of ["kind", "wrong", "differ"]) this.control(name).addEventListener("change", () => this.filter());
    this.control("previous").addEventListener("click", () => this.turn(-1));
    this.control("next").addEventListener("click", () => this.turn(1));
    this.filter();
  }

  chooseAuthors() {
    this.authors.forEach((author, index) => {
      const label = make("label", "");
      const box = make("input", "", { type: "checkbox" });
      box.checked = true;
      box.addEventListener("change", () => { this.shown[box.checked ? "add" : "delete"](index); this.filter(); });
      label.append(box, make("span", author));
      this.control("authors").append(label);
    });
  }

  // What the chosen arms and teachers wrote.
  chosen(asked) {
    return asked.writings.map((writing, index) => [index, writing]).filter(([index, writing]) => writing && this.shown.has(index));
  }

  filter() {
    const words = this.control("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [held, wrong, differ] = [this.control("kind").value === "held-out", this.control("wrong").checked, this.control("differ").checked];
    this.found = this.questions.filter(asked => {
      if (asked.held_out !== held || !words.every(word => asked.haystack.includes(word))) return false;
      const writings = this.chosen(asked).map(([, writing]) => writing);
      return (!wrong || writings.some(writing => writing[2] === false))
        && (!differ || new Set(writings.map(writing => writing[1])).size > 1);
    });
    this.page = 0;
    this.render();
  }

  turn(pages) {
    this.page += pages;
    this.render();
    this.root.scrollIntoView();
  }

  render() {
    const first = this.page * PAGE_SIZE;
    const found = this.found.slice(first, first + PAGE_SIZE);
    const list = this.control("list");
    list.replaceChildren(...found.map(asked => this.summarize(asked)));
    this.control("count").textContent = found.length
      ? `${first + 1} to ${first + found.length} of ${this.found.length} questions` : "No question is like this.";
    this.control("previous").disabled = first === 0;
    this.control("next").disabled = first + PAGE_SIZE >= this.found.length;
  }

  summarize(asked) {
    const details = make("details", "");
    const graded = this.chosen(asked).filter(([, writing]) => writing[2] !== null);
    const right = graded.filter(([, writing]) => writing[2]).length;
    const summary = make("summary", `${asked.question}\n`);
    const gold = asked.gold === null ? "" : `Gold answer: ${asked.gold} · `;
    summary.append(make("span", `${gold}${right} of ${graded.length} right`, { class: "gold" }));
    details.append(summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(this.open(asked));
    });
    return details;
  }

  open(asked) {
    const writings = make("div", "", { class: "writings" });
    for (const [index, [text, answer, correct]] of this.chosen(asked)) {
      const head = make("h3", `${this.authors[index]} · ${answer === null ? "no answer read" : `answer ${answer}`} `);
      if (correct !== null) head.append(make("span", correct ? "✓ right" : "✗ wrong", { class: correct ? "right" : "wrong" }));
      const block = make("div", "");
      block.append(head, make("p", text));
      writings.append(block);
    }
    return writings;
  }
}

const browser = document.querySelector(".browser");
if (browser) readQuestions().then(data => { new QuestionBrowser(browser, data); browser.dataset.ready = ""; });
