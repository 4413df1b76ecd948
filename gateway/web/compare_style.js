// How <prefloop-compare> looks. A constructed style sheet: no policy against inline styles is in its way.
// Light or dark follows the page's color-scheme; pages adjust it by --prefloop-* properties and ::part().

const STYLE = `
:host {
  --_accent: var(--prefloop-accent, light-dark(#4f46e5, #8b85ff));
  --_on-accent: var(--prefloop-on-accent, light-dark(#fff, #12131a));
  --_soft: var(--prefloop-accent-soft, light-dark(#eceafd, #262547));
  --_surface: var(--prefloop-surface, light-dark(#fff, #171a21));
  --_text: var(--prefloop-text, light-dark(#171a21, #e8eaf0));
  --_muted: var(--prefloop-muted, light-dark(#5b6472, #9aa4b4));
  --_line: var(--prefloop-line, light-dark(#dfe3ea, #2b313c));
  --_bad: var(--prefloop-bad, light-dark(#b91c2e, #ff7a86));
  --_bad-soft: var(--prefloop-bad-soft, light-dark(#fde7e9, #3a181c));
  --_radius: var(--prefloop-radius, 14px);
  display: block; min-width: 0; font: inherit; text-align: start;
}
:host([state="idle"]) .answers, :host([hidden]), [hidden] { display: none !important; }
* { box-sizing: border-box; }
:focus-visible { outline: 3px solid var(--_accent); outline-offset: 2px; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 14px; }
article {
  min-width: 0; padding: 12px 16px 14px; border: 1.5px solid var(--_line); border-radius: var(--_radius);
  background: var(--_surface); color: var(--_text); box-shadow: 0 1px 2px rgb(15 17 21 / 5%), 0 6px 24px rgb(15 17 21 / 6%);
}
h2 {
  display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 0 0 6px;
  font-size: .8125rem; font-weight: 600; letter-spacing: .02em; color: var(--_muted);
}
.badge {
  padding: 0 9px; border-radius: 999px; background: var(--_accent); color: var(--_on-accent); font-size: .75rem; line-height: 1.5;
}
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.text[data-empty]::before { content: attr(data-empty); color: var(--_muted); font-style: italic; }
.writing .text::after {
  content: ""; display: inline-block; width: 7px; height: 1em; margin-inline-start: 2px; vertical-align: -2px; border-radius: 2px;
  background: var(--_accent);
}
article.picked { border-color: var(--_accent); background: color-mix(in srgb, var(--_soft) 55%, var(--_surface)); }
article.left { box-shadow: none; color: var(--_muted); }
.status { margin: 10px 0 0; min-height: 1.5em; text-align: center; font-size: .875rem; color: inherit; }
.status.quiet { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.choices { display: flex; flex-wrap: wrap; gap: 8px; justify-content: center; margin-top: 8px; }
.choices button { flex: 1 1 8rem; }
button {
  min-width: 44px; min-height: 44px; padding: 6px 14px; border: 1px solid var(--_line); border-radius: 10px; cursor: pointer;
  font: inherit; font-size: .9375rem; background: var(--_surface); color: var(--_text);
}
button.pick { border-color: var(--_accent); color: var(--_accent); }
button:hover { background: var(--_soft); border-color: var(--_accent); }
.choices button.report { flex: 0 0 auto; border-color: transparent; background: none; color: var(--_muted); font-size: .8125rem; }
.choices button.report:hover, button.report[aria-pressed="true"] { border-color: var(--_bad); color: var(--_bad); background: var(--_bad-soft); }
button[aria-disabled="true"] { opacity: .5; cursor: default; }
kbd {
  margin-inline-start: 7px; padding: 0 5px; border: 1px solid var(--_line); border-radius: 5px;
  font: .6875rem ui-monospace, "DejaVu Sans Mono", monospace; color: var(--_muted);
}
.failure {
  display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin-top: 10px; padding: 8px 14px;
  border-radius: 10px; background: var(--_bad-soft); color: var(--_bad); font-size: .9375rem;
}
@media (hover: none) { kbd { display: none; } }
@media (prefers-reduced-motion: no-preference) {
  .writing .text::after { animation: blink 1s steps(2) infinite; }
  article, button { transition: background .12s, border-color .12s; }
}
@media (forced-colors: active) {
  .writing .text::after { background: CanvasText; }
  article.picked { border: 3px solid Highlight; }
}
@keyframes blink { 50% { opacity: 0; } }
`;

let sheet = null;

/** The one style sheet that all elements of a page share. */
export function shareSheet() {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  return sheet;
}
