"use strict";

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

if (document.getElementById("data")) showKept(JSON.parse(document.getElementById("data").textContent));

/** The map of each method, the slider, and the prompt; `data` is reporting.kept.Kept.to_json. */
function showKept(data) {
  const $ = (id) => document.getElementById(id);
  const rows = data.layers * data.kv_heads;
  const length = data.tokens.length;
  const stride = (length + 7) >> 3;
  const masks = data.methods.map(({ mask }) => Uint8Array.from(atob(mask), (c) => c.charCodeAt(0)));
  const isKept = (method, row, at) => (masks[method][row * stride + (at >> 3)] >> (at & 7)) & 1;
  let method = 0;
  let layer = -1; // all of them
  let focused = 0;

  /** How many heads of the rows from `first` up to `last` kept each token. */
  function counts(method, first, last) {
    const sums = new Uint16Array(length);
    for (let row = first; row < last; row++) {
      for (let at = 0; at < length; at++) sums[at] += isKept(method, row, at);
    }
    return sums;
  }

  function drawMap(canvas, method) {
    const step = Math.ceil(length / 512);
    canvas.width = Math.ceil(length / step);
    canvas.height = rows + 5;
    const pen = canvas.getContext("2d");
    pen.fillStyle = data.methods[method].color;
    for (let row = 0; row < rows; row++) {
      for (let x = 0; x < canvas.width; x++) {
        const end = Math.min(length, (x + 1) * step);
        let sum = 0;
        for (let at = x * step; at < end; at++) sum += isKept(method, row, at);
        if (sum) {
          pen.globalAlpha = sum / (end - x * step);
          pen.fillRect(x, row, 1, 1);
        }
      }
    }
    pen.globalAlpha = 1;
    pen.fillStyle = "#a371f7";
    for (const at of data.answer) pen.fillRect(Math.floor(at / step) - 1, rows + 1, 3, 4);
  }

  function addMethod({ name }, index) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), {
      type: "radio", name: "method", value: index, checked: index === 0,
    });
    input.addEventListener("change", () => {
      method = index;
      paint();
    });
    const title = Object.assign(document.createElement("b"), { textContent: name });
    const note = document.createElement("span");
    const kept = counts(index, 0, rows);
    const share = (list) => list.reduce((sum, at) => sum + kept[at], 0) / (rows * list.length);
    note.textContent = data.answer.length
      ? `answer kept by ${(100 * share(data.answer)).toFixed(0)}% of heads` : "";
    const canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    drawMap(canvas, index);
    label.append(input, title, note, canvas);
    $("methods").append(label);
  }

  const answer = new Set(data.answer);
  const spans = data.tokens.map((text, at) => {
    const span = document.createElement("span");
    span.textContent = visible(text);
    span.setAttribute("role", "option");
    span.tabIndex = -1;
    span.dataset.at = at;
    if (answer.has(at)) span.classList.add("answer");
    return span;
  });
  spans[0].tabIndex = 0;
  $("tokens").append(...spans);

  /** Colour the prompt for the method and layer chosen. */
  function paint() {
    const all = layer < 0;
    const most = all ? rows : data.kv_heads;
    const kept = all
      ? counts(method, 0, rows)
      : counts(method, layer * data.kv_heads, (layer + 1) * data.kv_heads);
    spans.forEach((span, at) => {
      span.style.setProperty("--k", (kept[at] / most).toFixed(3));
      span.classList.toggle("none", kept[at] === 0);
    });
    $("shown").textContent = all ? "all layers" : `layer ${layer}`;
    $("layer").setAttribute("aria-valuetext", $("shown").textContent);
    $("most").textContent = most;
    describe(focused);
  }

  const cells = [];
  $("heads").style.gridTemplateColumns = `1.5rem repeat(${data.kv_heads}, 1fr)`;
  for (let row = 0; row < rows; row++) {
    if (row % data.kv_heads === 0) {
      const label = document.createElement("span");
      label.textContent = row / data.kv_heads;
      $("heads").append(label);
    }
    cells.push(document.createElement("i"));
    $("heads").append(cells[row]);
  }

  /** Say of one token which heads kept it. */
  function describe(at) {
    let total = 0;
    cells.forEach((cell, row) => {
      const bit = isKept(method, row, at);
      const counted = layer < 0 || Math.floor(row / data.kv_heads) === layer;
      total += bit && counted;
      cell.className = (bit ? "kept" : "") + (counted ? "" : " off");
    });
    const code = Object.assign(document.createElement("code"), {
      textContent: visible(data.tokens[at]).trimEnd() || "␣",
    });
    const of = layer < 0 ? `${rows} heads` : `${data.kv_heads} heads of layer ${layer}`;
    const where = `position ${at}`;
    $("token").replaceChildren(code, `${where}: ${data.methods[method].name} keeps it in ${total} of ${of}`);
    $("heads").setAttribute("aria-label", `${where}: layers from top to bottom, heads side by side`);
    for (const other of $("tokens").querySelectorAll(".here")) other.classList.remove("here");
    spans[at].classList.add("here");
  }

  function focus(at) {
    spans[focused].tabIndex = -1;
    spans[focused].removeAttribute("aria-selected");
    focused = Math.max(0, Math.min(length - 1, at));
    spans[focused].tabIndex = 0;
    spans[focused].setAttribute("aria-selected", "true");
    spans[focused].focus({ preventScroll: true });
    spans[focused].scrollIntoView({ block: "nearest" });
    describe(focused);
  }

  const target = (event) => event.target.closest("[data-at]");
  $("tokens").addEventListener("pointerover", (event) => {
    if (target(event)) describe(Number(target(event).dataset.at));
  });
  $("tokens").addEventListener("pointerleave", () => describe(focused));
  $("tokens").addEventListener("click", (event) => {
    if (target(event)) focus(Number(target(event).dataset.at));
  });
  $("tokens").addEventListener("keydown", (event) => {
    const moves = {
      ArrowLeft: focused - 1, ArrowRight: focused + 1, ArrowUp: focused - 20, ArrowDown: focused + 20,
      PageUp: focused - 200, PageDown: focused + 200, Home: 0, End: length - 1,
    };
    if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      focus(moves[event.key]);
    }
  });
  $("layer").max = data.layers;
  $("layer").addEventListener("input", () => {
    layer = Number($("layer").value) - 1;
    paint();
  });
  $("answer").hidden = data.answer.length === 0;
  $("answer").addEventListener("click", () => {
    focus(data.answer[0]);
    spans[focused].scrollIntoView({ block: "center" });
  });
  data.methods.forEach(addMethod);
  paint();
}

/** A token's text with its line breaks to be seen; a token that is part of a character is a dot. */
function visible(text) {
  return text === "" ? "·" : text.replace(/\r?\n/g, "⏎\n");
}
