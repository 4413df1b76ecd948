// Numbers and times in words for the console. Pure functions.

export const percent = (ratio, digits = 0) => (ratio === null || ratio === undefined ? "–" : `${(100 * ratio).toFixed(digits)}%`);

export const signedPercent = (ratio) => {
  const rounded = Math.round(100 * ratio);
  return `${rounded > 0 ? "+" : rounded < 0 ? "−" : ""}${Math.abs(rounded)}%`;
};

export const count = (number) => (number ?? 0).toLocaleString("en");

/** An e-value: two digits where it matters; far beyond any threshold, only that it is. */
export function evidence(e) {
  if (e === null || e === undefined || !Number.isFinite(e)) return "∞";
  if (e >= 1e6) return "over 1M";
  if (e >= 100) return count(Math.round(e));
  if (e >= 10) return e.toFixed(0);
  return e >= 0.095 ? e.toFixed(1) : e.toFixed(2);
}

/** Seconds as "42 s", "3 min 5 s", "2 h 10 min", "3 d 4 h". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Epoch seconds as a local clock time; with the date when it is not today, and the year when it is not this one. */
export function clock(at) {
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString("en-GB");
  const today = new Date();
  if (date.toDateString() === today.toDateString()) return time;
  const year = date.getFullYear() === today.getFullYear() ? {} : { year: "numeric" };
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short", ...year })} ${time}`;
}

const TONES = {
  Shadowing: "go", Progressing: "go", Paused: "wait", WaitingPromotion: "wait", Promoting: "go", Baking: "go", Healthy: "good", RollingBack: "wait",
  Aborting: "bad", Degraded: "bad",
};

/** The colour of a phase, as a class; none for a phase that is neither good nor bad. */
export const toneOf = (phase) => TONES[phase] ?? "";

const PHASE_NAMES = { WaitingPromotion: "Waiting for promotion", RollingBack: "Rolling back" };

/** A phase in words; most are words already. */
export const phaseName = (phase) => PHASE_NAMES[phase] ?? (phase || "–");

/** What evidence is counted in, "user" or "comparison", as one or many. */
export const unitName = (unit, number) => (number === 1 ? unit : `${unit}s`);

/** Why a rollout is where it is: the reason's code, its words, and what an operator wrote. */
export const why = ({ reason, reason_text, note }) => `${reason}: ${[reason_text, note].filter(Boolean).join(" – ")}`;
