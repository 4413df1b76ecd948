// Applies the stored light/dark choice before the first paint, and wires the button that changes it.
// A classic script on purpose: modules run after the first paint.
(() => {
  const root = document.documentElement;
  const stored = readStored();
  if (stored) root.dataset.theme = stored;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const show = () => {
      button.setAttribute("aria-label", isDark() ? "Use the light theme" : "Use the dark theme");
      button.title = button.getAttribute("aria-label");
    };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem("prefloop-theme", root.dataset.theme);
      } catch {
        // Storage may be forbidden; the choice then lasts as long as the page.
      }
      show();
    });
    show();
  });

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function readStored() {
    try {
      const theme = localStorage.getItem("prefloop-theme");
      return theme === "light" || theme === "dark" ? theme : null;
    } catch {
      return null;
    }
  }
})();
