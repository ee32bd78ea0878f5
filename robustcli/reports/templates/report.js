"use strict";
(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const live = make("div", { className: "hidden" });
  live.setAttribute("aria-live", "polite");
  document.body.append(live);

  // Light and dark: as the system says until the reader chooses.
  const side = document.querySelector(".side");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const stored = (value) => {
    try { // some browsers refuse storage to pages from files
      if (value) localStorage.setItem("robust-report-theme", value);
      return localStorage.getItem("robust-report-theme");
    } catch { return null; }
  };
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const theme = make("button", { type: "button", className: "theme" });
  const showTheme = () => { theme.textContent = isDark() ? "Light colours" : "Dark colours"; };
  const known = stored();
  if (known === "dark" || known === "light") root.dataset.theme = known;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored(root.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();
  side.prepend(theme);

  // The table of contents is open where there is room beside the text.
  const contents = document.querySelector(".contents details");
  if (contents) {
    const roomy = matchMedia("(min-width: 70rem)");
    const follow = () => { contents.open = roomy.matches; };
    roomy.addEventListener("change", follow);
    follow();
  }

  // Tables: sorted by a column, filtered by a text.
  const UNITS = {
    ms: 1e-3, s: 1, min: 60, h: 3600, B: 1, kB: 1e3, MB: 1e6, GB: 1e9,
    KiB: 1024, MiB: 2 ** 20, GiB: 2 ** 30,
  };
  const NUMBER = /^([<>≥≤~≈]\s*)?([+\-−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[+\-−]?\d+)?)(?:\s*([a-zA-Zµ]+))?/i;
  const plain = (digits) => Number(digits.replaceAll(",", "").replace("−", "-"));
  // The number at the start of a cell: of `75.5 (70.1–80.7)` 75.5, of `1 h 5 min` 3900, of `> 5`
  // a little more than 5. NaN where a cell starts with no number.
  const numberOf = (text) => {
    const match = NUMBER.exec(text);
    if (!match) return NaN;
    const [all, bound, digits, unit] = match;
    const rest = text.slice(all.length);
    if (unit && !(unit in UNITS)) {
      if (!/\s/.test(text.slice(0, all.length - unit.length).slice(-1))) return NaN; // as `3x3`, `0a1b`
      return plain(digits);
    }
    if (!unit && /^(?:[\w/.:]|-\d+-\d)/.test(rest)) return NaN; // as a version or a date
    let value = plain(digits) * (unit ? UNITS[unit] : 1);
    const second = unit && /^\s+(\d+)\s*(min|s)\b/.exec(rest);
    if (second) value += plain(second[1]) * UNITS[second[2]];
    const nudge = Math.abs(value) * 1e-9 + 1e-12;
    if (bound && /[>≥]/.test(bound)) value += nudge;
    if (bound && /[<≤]/.test(bound)) value -= nudge;
    return value;
  };
  const EMPTY = new Set(["", "–", "-", "—", "not yet", "none"]);
  const textOf = (row, column) => (row.cells[column]?.textContent ?? "").trim();

  for (const table of document.querySelectorAll("main table")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 2) continue;
    const original = [...body.rows];
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const name = header.textContent.trim();
      if (!name) return;
      const button = make("button", { type: "button", className: "sort" });
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const texts = original.map((row) => textOf(row, column));
        const shown = texts.filter((text) => !EMPTY.has(text));
        const numeric = shown.length > 0 && shown.every((text) => !Number.isNaN(numberOf(text)));
        // Numbers are first sorted from the highest, names from A.
        const order = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
        const next = order[order.indexOf(header.ariaSort) + 1];
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        let rows = original;
        if (next) {
          header.ariaSort = next;
          const sign = next === "ascending" ? 1 : -1;
          const compare = numeric
            ? (a, b) => numberOf(a) - numberOf(b)
            : (a, b) => a.localeCompare(b, "en", { numeric: true });
          const keyed = original.map((row, place) => [row, texts[place]]);
          keyed.sort(([, a], [, b]) => {
            const without = EMPTY.has(a) - EMPTY.has(b); // rows without a value are always last
            return without || (EMPTY.has(a) ? 0 : sign * compare(a, b));
          });
          rows = keyed.map(([row]) => row);
        }
        body.append(...rows);
        live.textContent = next
          ? `Sorted by ${name}, ${next}.`
          : "Rows are in their original order.";
      });
    });

    if (original.length < 10) continue;
    const count = make("span", { textContent: `${original.length} rows` });
    const input = make("input", { type: "search", spellcheck: false, autocomplete: "off" });
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of original) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length
        ? `${shown} of ${original.length} rows`
        : `${original.length} rows`;
      live.textContent = count.textContent;
    });
    const label = make("label", {}, "Filter ", input);
    label.title = table.caption ? table.caption.textContent : "";
    const box = table.closest(".scroll");
    box.before(make("div", { className: "tools" }, label, count));
    if (original.length > 40) box.classList.add("long");
  }

  // One dialog shows enlarged pictures and the photos behind a cell. The browser closes it on
  // Escape and gives the focus back to what opened it.
  const title = make("h2", { id: "dialog-title" });
  const close = make("button", { type: "button", className: "close", textContent: "Close" });
  const content = make("div", { className: "dialog-body" });
  const head = make("div", { className: "dialog-head" }, title, close);
  const dialog = make("dialog", {}, head, content);
  dialog.setAttribute("aria-labelledby", "dialog-title");
  document.body.append(dialog);
  let opener = null;
  const open = (words, from, ...children) => {
    opener = from;
    title.textContent = words;
    content.replaceChildren(...children);
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    const edges = dialog.getBoundingClientRect();
    const inside = event.clientX >= edges.left && event.clientX <= edges.right
      && event.clientY >= edges.top && event.clientY <= edges.bottom;
    if (event.target === dialog && !inside) dialog.close();
  });
  dialog.addEventListener("close", () => {
    content.replaceChildren();
    opener?.focus();
  });

  for (const image of document.querySelectorAll("main figure.picture > img")) {
    const button = make("button", { type: "button", className: "zoom" });
    button.setAttribute("aria-label", `Enlarge: ${image.alt}`);
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => {
      const large = make("img", { src: image.src, alt: "" });
      const width = Math.max(image.naturalWidth, Math.min(innerWidth * 0.9, 1100));
      large.width = width;
      large.height = width * image.naturalHeight / image.naturalWidth;
      if (button.closest(".chart")) large.className = "chart-image";
      open(image.alt, button, large);
    });
  }

  // The photos behind a cell, each beside the clean one, with the answers of the cell's model first.
  const answersFor = (figure, model) => {
    const list = figure.querySelector(".answers");
    for (const item of [...list.children].reverse()) {
      if (item.dataset.model === model) list.prepend(item);
      else item.classList.add("other");
    }
  };
  const masksFor = (figure, model) => {
    for (const mask of figure.querySelectorAll(".mask")) mask.hidden = mask.dataset.model !== model;
  };
  for (const link of document.querySelectorAll("a.photos")) {
    link.addEventListener("click", (event) => {
      const section = document.getElementById(link.hash.slice(1));
      if (!section || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const { model } = link.dataset;
      const note = make("p", { textContent: section.dataset.note });
      const pairs = [...section.querySelectorAll("figure.photo")].map((figure) => {
        const clean = document.querySelector(`#${section.dataset.clean} [data-photo="${figure.dataset.photo}"]`);
        const versions = (clean && clean !== figure ? [clean, figure] : [figure]).map((version) => {
          const copy = version.cloneNode(true);
          answersFor(copy, model);
          masksFor(copy, model);
          copy.querySelector(".truth")?.remove();
          copy.prepend(make("p", { className: "label", textContent: version === clean ? "clean" : version.dataset.cell }));
          return copy;
        });
        const name = make("h3", { textContent: figure.querySelector(".truth").textContent });
        return make("section", { className: "pair" }, name, ...versions);
      });
      const number = link.textContent.trim();
      open(`${section.dataset.cell}, ${model}: ${number}`, link, note,
        make("div", { className: "pairs" }, ...pairs));
    });
  }
})();
