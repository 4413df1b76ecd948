// Small builders of elements. Text is always set as text, never parsed as markup.

export const byId = (id) => document.getElementById(id);

/** Make an HTML element; children are nodes or text. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Set text only when it changed, so that selections and screen readers are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replace what is in an element, unless the same stands there already: a selection, or the focus, is left in peace. */
export function replaceChanged(parent, nodes) {
  const isSame = parent.children.length === nodes.length && nodes.every((node, i) => node.isEqualNode(parent.children[i]));
  if (!isSame) parent.replaceChildren(...nodes);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}
