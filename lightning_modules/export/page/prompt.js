// What a page asks and reads; student.json says how. Nothing here touches the page.

export const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const POLAR = [["true", "false"], ["yes", "no"]];

// Returns the lines of a text that say something.
export function readLines(text) {
  return text.split("\n").map((line) => line.trim()).filter((line) => line);
}

// Returns what kind of answer a question has, by its options.
export function nameKind(options) {
  if (!options.length) return "number";
  const known = new Set(options.map((option) => option.toLowerCase()));
  const isPolar = POLAR.some((pair) => known.size === 2 && pair.every((word) => known.has(word)));
  return isPolar ? "boolean" : "choice";
}

// Returns why a question cannot be asked; null if it can.
export function findFault(student, question, options) {
  if (!question) return "Write a question first.";
  if (options.length === 1) return "One option is no choice: write two at least, or none.";
  if (options.length > LETTERS.length) return `There can be ${LETTERS.length} options at most.`;
  const name = student.refused.find((own) => [question, ...options].some((text) => text.includes(own)));
  return name ? `The student cannot read ${name} as text: leave it out.` : null;
}

// Returns the prompt that poses a question, as evaluate does.
export function posePrompt({ before, after, parts }, question, options) {
  const values = {
    question,
    choices: options.map((option, number) => `${LETTERS[number]}) ${option}`).join("\n"),
    letters: [...LETTERS.slice(0, options.length)].join(", "),
  };
  const message = parts[nameKind(options)].map(([text, name]) => text + (name ? values[name] : ""));
  return before + message.join("") + after;
}

// Parts a text at the last answer sentence of the form that the student learned; `stated` is null where there is none.
export function partAnswer([before, after], text) {
  const start = text.lastIndexOf(before);
  if (start < 0) return { rationale: text.trim(), stated: null };
  const line = text.slice(start + before.length).split("\n", 1)[0].trim();
  const stated = after && line.endsWith(after) ? line.slice(0, -after.length) : line;
  return { rationale: text.slice(0, start).trim(), stated };
}

// Returns the number of the option that an answer is, by its letter, its text or both; -1 if it is none.
export function findOption(options, stated) {
  const plain = (text) => text.replace(/\.$/, "").toLowerCase();
  return options.findIndex((option, number) => {
    const letter = LETTERS[number];
    return [option, letter, `${letter}) ${option}`].some((own) => plain(own) === plain(stated));
  });
}
