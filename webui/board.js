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
  // One click on a finished run's Chat loads it: the page Chat looks for this note, which no other page can leave.
  addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest('a[href^="chat?run="]');
    if (link) sessionStorage.setItem("forge_load", new URL(link.href).searchParams.get("run"));
  });
  // Values under the pointer, in a chart of curves.
  const near = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (points[middle][0] < x) low = middle; else high = middle; }
    return Math.abs(points[low][0] - x) < Math.abs(points[high][0] - x) ? points[low] : points[high];
  };
  addEventListener("pointermove", (event) => {
    const chart = event.target.closest && event.target.closest("svg.curves");
    document.querySelectorAll(".plot .tip").forEach((tip) => { if (!chart || !tip.parentElement.contains(chart)) { tip.style.visibility = "hidden"; } });
    document.querySelectorAll("svg.curves .cursor").forEach((line) => { if (!chart || !chart.contains(line)) line.style.visibility = "hidden"; });
    if (!chart) return;
    const box = chart.getBoundingClientRect(), scale = chart.viewBox.baseVal.width / box.width;
    const at = (event.clientX - box.left) * scale;
    const [x0, x1, left, right] = chart.dataset.x.split(" ").map(Number), [y0, y1, bottom, top] = chart.dataset.y.split(" ").map(Number);
    if (at < left || at > right) return;
    const told = [];
    let step = null;
    chart.querySelectorAll("polyline").forEach((line) => {
      line.near = line.near || line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number));
      const [x, y] = near(line.near, at);
      step = step === null ? x0 + (x - left) / (right - left) * (x1 - x0) : step;
      if (told.length < 12) told.push(`${(y0 + (y - bottom) / (top - bottom) * (y1 - y0)).toPrecision(4)}  ${line.dataset.name}`);
    });
    if (step === null) return;
    const tip = chart.parentElement.querySelector(".tip"), cursor = chart.querySelector(".cursor");
    tip.textContent = `${Math.round(step)}\n${told.join("\n")}`;
    cursor.setAttribute("x1", at); cursor.setAttribute("x2", at);
    cursor.style.visibility = tip.style.visibility = "visible";
    tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4)}px`;
  });
  // A board that does not answer says so on every open page, also on one that asks it nothing.
  const look = async () => {
    const here = await fetch("alive", { cache: "no-store" }).then(() => true, () => false);
    const told = document.getElementById("gone");
    if (here && told) told.remove();
    if (!here && !told && document.body) {
      const note = document.createElement("p");
      note.id = "gone";
      note.setAttribute("role", "alert");
      note.textContent = texts[language].gone;
      document.body.prepend(note);
    }
  };
  setInterval(() => { if (!document.hidden) look(); }, 5000);
  // gradio takes only pressed keys for typing; what is deleted, pasted, dropped or composed (Chinese) is typed too.
  let pressed = false;
  addEventListener("keypress", (event) => { if (event.isTrusted) pressed = true; }, true);
  addEventListener("input", (event) => {
    const known = pressed;
    pressed = false;
    if (!known && event.isTrusted && event.target.matches?.("[data-testid=textbox]"))
      event.target.dispatchEvent(new KeyboardEvent("keypress", { bubbles: true }));
  });
  // gradio patches its HTML in place when a value changes, which would fold again what a reader has opened.
  const unfolded = new WeakSet();
  addEventListener("click", (event) => {
    const fold = event.target.closest && event.target.closest("summary")?.parentElement;
    if (fold) unfolded[fold.open ? "delete" : "add"](fold);
  }, true);
  new MutationObserver((changes) => {
    for (const { target } of changes) if (unfolded.has(target) && !target.open) target.open = true;
  }).observe(document.documentElement, { subtree: true, attributes: true, attributeFilter: ["open"] });
  // An editor would keep Tab for itself, and whoever has no mouse in it.
  addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.closest?.(".cm-content")) event.stopPropagation();
  }, true);
  // gradio's editors have no name for screen readers; they get that of their label.
  const nameEditors = () => {
    for (const part of document.querySelectorAll('.cm-scroller[tabindex="-1"]')) part.tabIndex = 0;  // keys scroll it
    for (const part of document.querySelectorAll('[aria-label="Code input container"]')) part.removeAttribute("aria-label");
    for (const part of document.querySelectorAll('.empty[aria-label="Empty value"]')) part.removeAttribute("aria-label");
    for (const part of document.querySelectorAll('[aria-label^="number input for "], [aria-label^="range slider for "]'))
      part.setAttribute("aria-label", part.getAttribute("aria-label").replace(/^(number input|range slider) for /, ""));
    for (const [english, own] of [["Reset to default value", texts[language].reset], ["Copy", texts[language].copy]])
      for (const name of ["aria-label", "title"])
        for (const part of document.querySelectorAll(`[${name}="${english}"]`)) if (own !== english) part.setAttribute(name, own);
    for (const fold of document.querySelectorAll(".cm-foldGutter [title]")) fold.removeAttribute("title");  // English
    for (const editor of document.querySelectorAll(".cm-content:not([aria-label])")) {
      const block = editor.closest(".block");
      const label = block && block.querySelector("[data-testid=block-label], label");
      if (label && label.textContent.trim()) editor.setAttribute("aria-label", label.textContent.trim());
    }
  };
  // Tabs of the browser are told apart by the page's name; gradio gives all the same.
  const nameTab = () => {
    const heading = document.getElementById("title"), title = heading && `${heading.textContent} · Forge`;
    if (title && document.title !== title) document.title = title;
  };
  new MutationObserver(() => { nameEditors(); nameTab(); }).observe(document.documentElement, { childList: true, subtree: true });
})();
