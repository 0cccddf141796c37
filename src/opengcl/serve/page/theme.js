// Not a module: it runs before the first paint, so that nobody sees the other colours flash by.
{
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const storage = (act) => {
    try {
      return act();
    } catch {
      return null; // storage is off: the choice holds until the page is left
    }
  };

  const kept = storage(() => localStorage.getItem("theme"));
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => button.setAttribute("aria-pressed", String(isDark()));
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      storage(() => localStorage.setItem("theme", root.dataset.theme));
      tell();
    });
    dark.addEventListener("change", tell);
    tell();
  });
}
