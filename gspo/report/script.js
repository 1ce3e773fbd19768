"use strict";

// Charts: a cursor at the nearest point, and its values above the chart.
const SVG = "http" + "://www.w3.org/2000/svg"; // the name of a namespace, never fetched

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function nearest(places, x) {
  let best = 0;
  for (let i = 1; i < places.length; i++) if (Math.abs(places[i] - x) < Math.abs(places[best] - x)) best = i;
  return best;
}

function makeReadout(svg) {
  const data = JSON.parse(svg.dataset.hover);
  const figure = svg.closest("figure");
  const at = figure.querySelector(".at");
  const values = [...figure.querySelectorAll(".key b")];
  const resting = values.map((node) => node.textContent);
  const cursor = shape("path", { class: "cursor", visibility: "hidden" });
  const marks = data.series.map((series) => shape("circle", { class: "mark", r: 4, fill: series.color }));
  svg.append(cursor, ...marks);

  function leave() {
    at.textContent = "";
    cursor.setAttribute("visibility", "hidden");
    values.forEach((node, i) => { node.textContent = resting[i]; });
    marks.forEach((mark) => mark.setAttribute("visibility", "hidden"));
  }
  function move(event) {
    const box = svg.getBoundingClientRect();
    const point = nearest(data.x, ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width);
    const x = data.x[point];
    at.textContent = data.labels[point];
    cursor.setAttribute("d", `M${x} 10V180`);
    cursor.setAttribute("visibility", "visible");
    data.series.forEach((series, i) => {
      values[i].textContent = series.text[point];
      const y = series.y[point];
      marks[i].setAttribute("visibility", y === null ? "hidden" : "visible");
      if (y !== null) { marks[i].setAttribute("cx", x); marks[i].setAttribute("cy", y); }
    });
  }
  leave();
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", leave);
}

document.querySelectorAll("svg[data-hover]").forEach((svg) => { if (svg.dataset.hover) makeReadout(svg); });

// Completions. Text of a model is only ever set as textContent.
function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

function signed(value) { return (value > 0 ? "+" : "") + number(value); }

function tokenColor(ratio, scale) {
  if (ratio === null || ratio === 0) return "";
  const strength = Math.min(Math.abs(ratio) / scale, 1) * 0.75;
  return `rgba(var(--${ratio > 0 ? "up" : "down"}), ${strength.toFixed(3)})`;
}

function tokenTip(row, i) {
  const lines = ["token " + JSON.stringify(row.tokens[i])];
  const ratio = row.log_ratio[i];
  const old = row.old[i];
  if (ratio !== null && ratio !== undefined) lines.push("log-ratio " + signed(ratio));
  if (old !== null && old !== undefined && ratio !== null) {
    lines.push(`probability ${number(Math.exp(old), 2)} → ${number(Math.exp(old + ratio), 2)}`);
  }
  return lines.join("\n");
}

function completionCell(row, scale) {
  const cell = element("td", "text");
  const cutAt = row.cut ? row.cut_at : -1;
  row.tokens.forEach((token, i) => {
    if (i === cutAt) cell.append(element("span", "end", ` … ${row.cut} tokens … `));
    const span = element("span", "token", token.replaceAll("\n", "⏎\n") || "∅");
    if (row.chosen && !row.chosen[i]) {
      span.className = "token environment";
      span.dataset.tip = "said by the environment: not trained";
    } else {
      span.style.backgroundColor = tokenColor(row.log_ratio[i], scale);
      span.dataset.tip = tokenTip(row, i);
    }
    cell.append(span);
  });
  return cell;
}

function cell(name, text, className) {
  const node = element("td", className, text);
  node.dataset.name = name;
  return node;
}

function fateCell(fate) {
  const node = cell("ratio", fate && fate.ratio !== null ? fate.ratio.toFixed(5) : "–");
  if (fate && fate.clipped_tokens) node.append(element("div", "clipped", `${fate.clipped_tokens} tokens clipped`));
  else if (fate && fate.bound !== "none") node.append(element("div", "clipped", `clipped ${fate.bound}`));
  return node;
}

function sampleRow(row, scale) {
  const tr = element("tr");
  tr.append(completionCell(row, scale));
  const reward = cell("reward", number(row.reward));
  const parts = Object.entries(row.parts);
  if (parts.length > 1) reward.append(element("div", "quiet", parts.map(([k, v]) => `${k}\u00a0${number(v)}`).join(", ")));
  const share = row.fate && row.fate.share !== null ? (100 * row.fate.share).toFixed(1) + " %" : "–";
  tr.append(reward, cell("advantage", row.advantage === null ? "–" : signed(row.advantage)), fateCell(row.fate),
    cell("gradient share", share), cell("tokens", String(row.length)), cell("finish", row.finish || "–"));
  return tr;
}

function groupBlock(rows, scale) {
  const block = element("div", "group");
  const question = element("div", "question");
  question.append(element("span", "text", rows[0].prompt));
  if (rows[0].answer !== null) {
    const answer = element("span", "quiet", "answer ");
    answer.append(element("span", "text", rows[0].answer));
    question.append(answer);
  }
  const table = element("table", "rows");
  const head = element("tr");
  for (const name of ["completion", "reward", "advantage", "ratio", "gradient share", "tokens", "finish"]) {
    head.append(element("th", "", name));
  }
  const thead = element("thead");
  thead.append(head);
  const body = element("tbody");
  rows.forEach((row) => body.append(sampleRow(row, scale)));
  table.append(thead, body);
  block.append(question, table);
  return block;
}

function showStep(section, data, chosen) {
  section.querySelectorAll(".steps button").forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
  const groups = new Map();
  for (const row of data.steps[chosen].rows) {
    if (!groups.has(row.group)) groups.set(row.group, []);
    groups.get(row.group).push(row);
  }
  const blocks = [...groups.values()].map((rows) => groupBlock(rows, data.scale));
  const shown = data.steps[chosen].rows.length;
  blocks.push(element("p", "note", `${shown} of the ${data.steps[chosen].total} completions of this step.`));
  section.querySelector(".groups").replaceChildren(...blocks);
}

function makeTip(section) {
  const tip = element("div", "tip");
  tip.hidden = true;
  document.body.append(tip);
  section.addEventListener("pointerover", (event) => {
    const token = event.target.closest(".token");
    tip.hidden = !token;
    if (!token) return;
    tip.textContent = token.dataset.tip;
    const box = token.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(left, 4) + window.scrollX}px`;
    tip.style.top = `${box.bottom + 4 + window.scrollY}px`;
  });
  section.addEventListener("pointerleave", () => { tip.hidden = true; });
}

function makeReader(section) {
  const data = JSON.parse(document.getElementById("rollouts").textContent);
  const steps = section.querySelector(".steps");
  data.steps.forEach((step, i) => {
    const button = element("button", "", i === 0 ? `step ${step.step}` : String(step.step));
    button.type = "button";
    button.addEventListener("click", () => showStep(section, data, i));
    steps.append(button);
  });
  section.querySelector(".scale").append(element("span", "", `less likely −${number(data.scale)}`), element("i"),
    element("span", "", `+${number(data.scale)} more likely`));
  makeTip(section);
  showStep(section, data, data.steps.length - 1);
}

const reader = document.getElementById("reader");
if (reader) makeReader(reader);
