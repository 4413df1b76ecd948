// The one dialog of the console: every action is asked about here before it is sent, with what it rests on and a note.

import { byId, make, setText } from "../dom.js";

byId("confirm-no").addEventListener("click", () => byId("confirm").close());

/**
 * Ask. facts: [name, value] pairs of what is decided on; fields: inputs by name, each {label, …attributes}; note: "required",
 * "optional" or none. onYes({note, …fields}, showError) resolves to whether it was done: then the dialog closes.
 */
export function askConfirmation({ title, text, label, tone, facts = [], fields = {}, note }, onYes) {
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  byId("confirm-fields").replaceChildren(...Object.entries(fields).map(makeField));
  showNoteField(note);
  const yes = byId("confirm-yes");
  setText(yes, label);
  yes.classList.toggle("danger", tone === "danger");
  yes.disabled = false;
  showConfirmationError("");
  byId("confirm-form").onsubmit = async (event) => {
    event.preventDefault();
    yes.disabled = true;
    const written = note ? { note: byId("reason").value.trim() } : {};
    const isDone = await onYes({ ...written, ...readFields(fields) }, showConfirmationError);
    yes.disabled = false;
    if (isDone) byId("confirm").close();
  };
  byId("confirm").showModal();
}

export const isAsking = () => byId("confirm").open;

/** Say in the open dialog what is wrong; "" for nothing. */
export function showConfirmationError(message) {
  setText(byId("confirm-error"), message);
  byId("confirm-error").hidden = !message;
}

function showNoteField(note) {
  byId("reason-field").hidden = !note;
  setText(byId("reason-label"), note === "required" ? "Why, in writing: it stays in the audit trail" : "Note, for the audit trail");
  byId("reason").value = "";
  byId("reason").required = note === "required";
}

/** An input under its label, or a row of choices where `options` are given: [value, label] pairs. */
function makeField([name, { label, hint, options, ...attributes }]) {
  const id = `field-${name}`;
  const described = hint ? { "aria-describedby": `${id}-hint` } : {};
  const input = options
    ? make("select", { id, ...described }, ...options.map(([value, text]) => make("option", { value, selected: value === attributes.value }, text)))
    : make("input", { id, spellcheck: "false", autocomplete: "off", ...described, ...attributes });
  const isBox = attributes.type === "checkbox";
  const line = isBox ? [make("label", { class: "box" }, input, label)] : [make("label", { for: id }, label), input];
  return make("div", {}, ...line, hint ? make("p", { id: `${id}-hint`, class: "hint muted" }, hint) : null);
}

function readFields(fields) {
  const read = (name) => {
    const input = byId(`field-${name}`);
    return input.type === "checkbox" ? input.checked : input.value.trim();
  };
  return Object.fromEntries(Object.keys(fields).map((name) => [name, read(name)]));
}
