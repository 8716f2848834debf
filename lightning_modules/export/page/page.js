// Loads the student of this folder, and answers questions; all of it happens in the browser.

import { LETTERS, findFault, findOption, nameKind, partAnswer, posePrompt, readLines } from "./prompt.js";
import { Wllama } from "./wllama.js";

const find = (id) => document.getElementById(id);
const quiet = { debug() {}, log() {}, warn() {}, error: console.error };
const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
let stopping = null;

function setState(state, message) {
  document.body.dataset.state = state;
  find("ask").disabled = state !== "ready";
  find("stop").hidden = state !== "answering";
  find("status").textContent = message;
}

async function fetchOwn(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

// Returns the student's file, and says how much of it is there.
async function fetchModel(total) {
  const reader = (await fetchOwn("student.gguf")).body.getReader();
  const chunks = [];
  for (let held = 0, part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    held += part.value.length;
    setState("loading", `Loading the student: ${megabytes(held)} of ${megabytes(total)} MB`);
  }
  return new Blob(chunks);
}

async function load(student) {
  // The page fetches the file itself, so that nothing is stored in the browser.
  const options = { suppressNativeLog: true, logger: quiet, cacheManager: {}, modelManager: {} };
  const engine = new Wllama({ default: "wllama.wasm" }, options);
  engine.setCompat(student.compat ? { worker: "compat.js", wasm: "compat.wasm" } : null);
  const model = await fetchModel(student.bytes);
  setState("loading", "Starting llama.cpp");
  // A graphics card would round otherwise than the processor that the file was checked on.
  await engine.loadModel([model], { n_ctx: student.context, n_parallel: 1, n_gpu_layers: 0, warmup: false });
  return engine;
}

function showAnswer(student, options, text, isDone) {
  const { rationale, stated } = partAnswer(student.answers[nameKind(options)], text);
  const number = stated === null ? -1 : findOption(options, stated);
  const shown = number >= 0 ? `${LETTERS[number]}) ${options[number]}` : stated;
  find("rationale").textContent = rationale;
  find("answer").textContent = shown ?? (isDone ? "none is stated" : "");
  find("answer").className = shown === null ? "missing" : "";
  find("doubt").hidden = !isDone || stated === null || !options.length || number >= 0;
}

async function answer(engine, student, question, options) {
  const prompt = posePrompt(student.prompt, question, options);
  find("prompt").textContent = prompt;
  find("reply").hidden = false;
  stopping = new AbortController();
  setState("answering", "Reading the question");
  showAnswer(student, options, "", false);
  let text = "";
  let note = "";
  let [begin, tokens, reason] = [0, 0, null];
  const readChunk = ({ choices: [choice] }) => {
    begin ||= performance.now();
    reason = choice.finish_reason;
    tokens += !reason;
    text += choice.text;
    showAnswer(student, options, text, false);
    find("status").textContent = `${tokens} tokens`;
  };
  const settings = { max_tokens: student.max_new_tokens, temperature: 0, cache_prompt: false, stream: true };
  try {
    await engine.createCompletion({ ...settings, prompt, abortSignal: stopping.signal, onData: readChunk });
    note = reason === "length" ? ", cut off at its limit" : "";
  } catch (error) {
    note = error.name === "AbortError" ? ", stopped" : `; ${error.message}`;
  }
  showAnswer(student, options, text, true);
  const seconds = (performance.now() - begin) / 1000;
  const speed = tokens > 1 ? `, ${((tokens - 1) / seconds).toFixed(1)} a second` : "";
  setState("ready", `${tokens} tokens${speed}${note}`);
}

function showFacts(student) {
  document.title = student.name;
  find("name").textContent = student.name;
  for (const [label, value] of student.facts) {
    const [term, description] = ["dt", "dd"].map((tag) => document.createElement(tag));
    [term.textContent, description.textContent] = [label, value];
    find("facts").append(term, description);
  }
}

async function start() {
  setState("loading", "Loading the page");
  const student = await (await fetchOwn("student.json")).json();
  showFacts(student);
  const engine = await load(student);
  setState("ready", "Ready");
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (document.body.dataset.state !== "ready") return;
    const question = find("question").value.trim();
    const options = readLines(find("options").value);
    const fault = findFault(student, question, options);
    if (fault) find("status").textContent = fault;
    else answer(engine, student, question, options);
  });
  find("stop").addEventListener("click", () => stopping.abort());
}

start().catch((error) => {
  const hint = "Suspending" in WebAssembly ? "" : " This browser may need files that `--compat` adds to the page.";
  setState("failed", `The student cannot be loaded: ${error.message}.${hint}`);
});
