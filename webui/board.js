// Runs before gradio: the reader's language, light or dark, and what the bar's buttons do.
(() => {
  const texts = TEXTS;
  const cookie = (document.cookie.match(/(?:^|; )forge_language=(en|zh)/) || [])[1];
  const language = cookie || ((navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en");
  // gradio's own words (upload areas, validation) follow the browser's language; the choice made on the board wins.
  for (const [name, value] of [["language", language === "zh" ? "zh-CN" : "en"], ["languages", [language === "zh" ? "zh-CN" : "en"]]])
    Object.defineProperty(navigator, name, { get: () => value });
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  const wished = localStorage.getItem("forge_dark");
  const dark = wished ? wished === "1" : matchMedia("(prefers-color-scheme: dark)").matches;
  const paint = (on) => document.body && document.body.classList.toggle("dark", on);
  new MutationObserver(() => {
    if (document.body && document.body.classList.contains("dark") !== (document.documentElement.dataset.dark === "1"))
      paint(document.documentElement.dataset.dark === "1");
  }).observe(document.documentElement, { subtree: true, attributes: true, attributeFilter: ["class"] });
  document.documentElement.dataset.dark = dark ? "1" : "0";
  addEventListener("DOMContentLoaded", () => paint(dark));
  const copy = (text) => navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject();
  addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("button");
    if (!button) return;
    if (button.id === "language") {
      document.cookie = `forge_language=${language === "zh" ? "en" : "zh"}; path=/; max-age=31536000; SameSite=Strict`;
      location.reload();
    } else if (button.id === "dark") {
      const on = document.documentElement.dataset.dark !== "1";
      document.documentElement.dataset.dark = on ? "1" : "0";
      localStorage.setItem("forge_dark", on ? "1" : "0");
      paint(on);
    } else if (button.dataset.copy !== undefined) {
      const before = button.textContent;
      copy(button.dataset.copy).then(() => { button.textContent = texts[language].copied; setTimeout(() => { button.textContent = before; }, 1500); }, () => {});
    }
  });
})();
