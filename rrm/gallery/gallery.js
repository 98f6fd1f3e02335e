// The page of rrm/gallery: everything it shows is `window.data` of data.js. Texts are put on the page as text only.
"use strict";

(() => {
  const data = window.data;
  const at = (id) => document.getElementById(id);
  const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
  const layerOf = (id) => allLayers.find((layer) => layer.id === id);
  const className = (label) => data.classes[label].name;
  const photosOf = (count) => (count === 1 ? "1 photo" : `${count} photos`);

  /** An element with attributes, properties (`text`, `html` is no such thing) and children. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const swatch = (label) => make("span", { class: "swatch", style: { "--colour": data.classes[label].colour }, "aria-hidden": "true" });
  const option = (value, text) => make("option", { value }, text);

  function* camLayers() {
    for (let label = 1; label < data.classes.length; label += 1) {
      yield { id: `cam:${label}`, name: `CAM: ${className(label)}`, kind: "heat" };
    }
  }
  const allLayers = [...data.layers, ...camLayers()];
  const layersOf = (photo) => allLayers.filter((layer) => layer.id in photo.images);
  const isModel = (id) => data.models.some((model) => model.id === id);

  // ---------------------------------------------------------------- what is chosen
  const best = data.models.reduce((one, other) => ((other.mean ?? 0) >= (one.mean ?? 0) ? other : one));
  const chosen = { model: best.id, label: null, split: "", layer: null, order: null, shown: [], open: null };
  chosen.layer = chosen.model;

  const scoreOf = (photo) => {
    const scores = photo.scores[chosen.model];
    if (!data.truth) return null;
    return chosen.label === null ? scores.mean : scores.iou[chosen.label] ?? null;
  };
  const splitNames = { val: "held out", train: "trained on" };
  const isIn = (photo) => chosen.split === "" || photo.split === chosen.split;
  const doubtOf = (photo) => photo.scores[chosen.model].doubt;
  const holds = (photo, label) =>
    (photo.found[data.truth ? "truth" : chosen.model] || []).includes(label) ||
    (photo.given || []).includes(label) || (photo.found[chosen.model] || []).includes(label);

  const byScore = (sign) => (one, other) => {
    const [a, b] = [scoreOf(one), scoreOf(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b);
  };
  const orders = {
    worst: ["IoU, lowest first", byScore(1)],
    best: ["IoU, highest first", byScore(-1)],
    doubtful: ["Doubt, highest first", (one, other) => doubtOf(other) - doubtOf(one)],
    sure: ["Doubt, lowest first", (one, other) => doubtOf(one) - doubtOf(other)],
    name: ["Name", (one, other) => (one.name < other.name ? -1 : Number(one.name > other.name))],
  };

  function filtered() {
    const [least, most] = [Number(at("least").value) / 100, Number(at("most").value) / 100];
    return data.photos
      .filter((photo) => isIn(photo) && (chosen.label === null || holds(photo, chosen.label)))
      .filter((photo) => {
        if (!data.truth || (least === 0 && most === 1)) return true;
        const score = scoreOf(photo);
        return score !== null && score >= least && score <= most;
      })
      .sort(orders[chosen.order][1]);
  }

  // ---------------------------------------------------------------- pictures
  function image(photo, layer, alt, eager) {
    const kind = layer.kind === "labels" ? "labels" : "whole";
    return make("img", { src: photo.images[layer.id], alt, class: kind, loading: eager ? null : "lazy", draggable: "false" });
  }

  function stack(photo, layer) {
    const small = Math.max(...photo.size) < 200 ? " small" : "";
    const below = layer.kind === "labels" ? image(photo, layerOf("photo"), "") : null;
    return make("span", { class: `stack${small}` }, below, image(photo, layer, ""));
  }

  function classList(labels) {
    return make("span", { class: "dots" }, ...labels.map((label) => make("span", {}, swatch(label), make("b", {}, className(label)))));
  }

  function card(photo) {
    const layer = layerOf(chosen.layer in photo.images ? chosen.layer : "photo");
    const labels = photo.found[data.truth ? "truth" : chosen.model] || [];
    const score = scoreOf(photo);
    const doubt = "train" in data.photosOf ? `doubt, ${splitNames[photo.split]}` : "doubt";
    const what = data.truth ? (chosen.label === null ? "mIoU" : "IoU") : doubt;
    const value = data.truth ? score : doubtOf(photo);
    const names = labels.map(className).join(", ") || "background only";
    const button = make(
      "button",
      { type: "button", class: "card", title: photo.name, "aria-haspopup": "dialog", "aria-label": `${photo.name}: ${names}, ${percent(value)} ${what}. Showing ${layer.name}.` },
      stack(photo, layer),
      make(
        "span",
        { class: "text" },
        make("span", { class: "name" }, photo.name),
        make("span", { class: "score" }, percent(value), make("span", {}, what)),
        make("span", { class: "meter" }, make("i", { style: { "--part": `${100 * (value || 0)}%` } })),
        classList(labels),
      ),
    );
    button.addEventListener("click", () => open(photo));
    return make("li", {}, button);
  }

  function draw() {
    chosen.shown = filtered();
    at("grid").replaceChildren(...chosen.shown.map(card));
    const all = data.photos.length;
    const count = chosen.shown.length;
    at("count").textContent = count === all ? `All ${photosOf(all)}.` : count ? `${count} of ${photosOf(all)}.` : "No photo is like that.";
    at("reset").hidden = count === all;
    for (const end of ["least", "most"]) at(`${end}-shown`).textContent = `${at(end).value} %`;
    at("range").querySelector("legend").textContent = chosen.label === null ? "IoU of the photo" : `IoU of ${className(chosen.label)}`;
  }

  function layerChips() {
    at("layers").replaceChildren(
      ...data.layers.map((layer) => {
        const input = make("input", { type: "radio", name: "layer", value: layer.id, checked: layer.id === chosen.layer });
        input.addEventListener("change", () => { chosen.layer = layer.id; draw(); });
        return make("label", {}, input, layer.name);
      }),
    );
  }

  function filters() {
    at("model").append(...data.models.map((model) => option(model.id, model.name)));
    at("model").value = chosen.model;
    at("class").append(option("", "All classes"), ...data.classes.slice(1).map((each, k) => option(k + 1, each.name)));
    const known = Object.keys(orders).filter((name) => data.truth || !["worst", "best"].includes(name));
    at("order").append(...known.map((name) => option(name, orders[name][0])));
    [chosen.order] = known;
    at("range").hidden = !data.truth;
    at("split").append(option("", "All photos"), ...Object.entries(splitNames).map(([id, name]) => option(id, name)));
    at("split").parentElement.hidden = !("train" in data.photosOf);
    at("split").addEventListener("change", () => {
      chosen.split = at("split").value;
      draw();
      labelTable();
    });
    at("model").addEventListener("change", () => {
      if (isModel(chosen.layer)) chosen.layer = at("model").value;
      chosen.model = at("model").value;
      layerChips();
      draw();
      scoreTables();
      confusion();
      labelTable();
    });
    at("class").addEventListener("change", () => choose(at("class").value));
    at("order").addEventListener("change", () => { chosen.order = at("order").value; draw(); });
    for (const [end, other, keep] of [["least", "most", Math.max], ["most", "least", Math.min]]) {
      at(end).addEventListener("input", () => {
        at(other).value = keep(Number(at(end).value), Number(at(other).value));
        draw();
      });
    }
    at("legend").append(...data.classes.map((each, label) => make("li", {}, swatch(label), each.name)));
    at("colours").open = data.classes.length <= 24;
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    at("reset").addEventListener("click", () => {
      at("least").value = 0;
      at("most").value = 100;
      at("split").value = chosen.split = "";
      choose("");
      labelTable();
      at("class").focus();
    });
  }

  function choose(label) {
    at("class").value = label;
    chosen.label = label === "" ? null : Number(label);
    draw();
    scoreTables();
  }

  // ---------------------------------------------------------------- one photo
  const sides = { left: "photo", right: null };

  function open(photo) {
    chosen.open = photo;
    if (sides.right === null) sides.right = chosen.layer === "photo" ? chosen.model : chosen.layer;
    view();
    if (!at("viewer").open) {
      at("viewer").showModal();
      at("divider").focus();
    }
  }

  function side(name, photo) {
    const layer = layerOf(sides[name]);
    const [below, above] = at(`${name}-side`).children;
    below.src = photo.images[layer.kind === "labels" ? "photo" : layer.id];
    above.hidden = layer.kind !== "labels";
    above.className = "labels";
    if (!above.hidden) above.src = photo.images[layer.id];
    const found = (photo.found[layer.id] || []).map(className).join(", ") || "background only";
    below.alt = layer.kind === "labels" ? "" : `${layer.name} of ${photo.name}`;
    above.alt = `${layer.name} of ${photo.name}: ${found}`;
    at(`${name}-tag`).textContent = layer.name;
    at(name).replaceChildren(...layersOf(photo).map((each) => option(each.id, each.name)));
    at(name).value = layer.id;
  }

  function view() {
    const photo = chosen.open;
    const held = [...at("strip").children].indexOf(document.activeElement);
    const place = chosen.shown.indexOf(photo);
    for (const name of ["left", "right"]) if (!(sides[name] in photo.images)) sides[name] = sides[name].startsWith("cam:") ? "cam" : "photo";
    at("viewer-title").textContent = photo.name;
    at("place").textContent = place < 0 ? "" : `${place + 1} of ${chosen.shown.length}`;
    at("previous").disabled = place <= 0;
    at("next").disabled = place < 0 || place + 1 >= chosen.shown.length;
    at("compare").classList.toggle("small", Math.max(...photo.size) < 200);
    at("compare").style.setProperty("--wide", String(photo.size[0] / photo.size[1]));
    side("left", photo);
    side("right", photo);
    at("heat").hidden = !["left", "right"].some((name) => layerOf(sides[name]).kind === "heat");
    divide();
    at("strip").replaceChildren(...layersOf(photo).map((layer, k) => {
      const button = make("button", { type: "button", "aria-pressed": String(layer.id === sides.right), title: k < 9 ? `Key ${k + 1}` : null }, stack(photo, layer), make("span", { class: "text" }, layer.name));
      button.addEventListener("click", () => { button.focus(); show("right", layer.id); });
      return button;
    }));
    at("facts").replaceChildren(facts(photo));
    keepFocus(held);
  }

  // Keys reach the dialog from what is focused in it: not from a thumbnail that was made anew, nor from a disabled button.
  function keepFocus(held) {
    const strip = at("strip").children;
    if (held >= 0) strip[Math.min(held, strip.length - 1)].focus();
    const focused = document.activeElement;
    if (at("viewer").open && (focused.disabled || !at("viewer").contains(focused))) at("divider").focus();
  }

  function show(name, id) {
    sides[name] = id;
    view();
  }

  function divide() {
    const value = at("divider").value;
    at("compare").style.setProperty("--at", `${value}%`);
    at("divider").setAttribute("aria-valuetext", `${value} % ${layerOf(sides.left).name}, the rest ${layerOf(sides.right).name}`);
  }

  function step(by) {
    const photo = chosen.shown[chosen.shown.indexOf(chosen.open) + by];
    if (photo) open(photo);
  }

  function facts(photo) {
    const scores = photo.scores[chosen.model];
    const seen = (id) => new Set(photo.found[id] || []);
    const [truth, found, given] = [seen("truth"), seen(chosen.model), new Set(photo.given || [])];
    const labels = [...data.classes.keys()].filter((label) => truth.has(label) || found.has(label) || given.has(label) || (scores.iou && label in scores.iou));
    const mark = (is) => make("td", {}, is ? "yes" : make("span", { class: "note" }, "no"));
    const head = ["Class", ...(photo.given ? ["Label"] : []), ...(data.truth ? [] : ["Found"])].map((text) => make("th", { scope: "col" }, text));
    if (data.truth) head.push(make("th", { scope: "col", class: "number" }, "IoU"));
    const rows = labels.map((label) => make(
      "tr", {},
      make("th", { scope: "row" }, swatch(label), className(label)),
      photo.given ? mark(label === 0 || given.has(label)) : null,
      data.truth ? make("td", { class: "number" }, percent(scores.iou[label])) : mark(label === 0 || found.has(label)),
    ));
    const model = data.models.find((each) => each.id === chosen.model).name;
    const mean = data.truth ? `mIoU ${percent(scores.mean)}, ` : "";
    return make("table", {}, make("caption", {}, `${model}: ${mean}doubt ${percent(scores.doubt)}`), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  }

  function viewer() {
    at("close").addEventListener("click", () => at("viewer").close());
    at("previous").addEventListener("click", () => step(-1));
    at("next").addEventListener("click", () => step(1));
    at("divider").addEventListener("input", divide);
    for (const name of ["left", "right"]) at(name).addEventListener("change", () => show(name, at(name).value));
    at("opacity").addEventListener("input", () => document.documentElement.style.setProperty("--opacity", String(at("opacity").value / 100)));
    at("viewer").addEventListener("click", (event) => { if (event.target === at("viewer")) at("viewer").close(); });
    at("viewer").addEventListener("close", () => {
      const place = chosen.shown.indexOf(chosen.open);
      const back = at("grid").children[place];
      if (back) back.querySelector("button").focus();
    });
    at("viewer").addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "SELECT") return;
      const layers = layersOf(chosen.open);
      if (event.key === "n") step(1);
      else if (event.key === "p") step(-1);
      else if (/^[1-9]$/.test(event.key) && layers[event.key - 1]) show("right", layers[event.key - 1].id);
      else return;
      event.preventDefault();
    });
  }

  // ---------------------------------------------------------------- tables
  function scoreTables() {
    if (!data.truth) return;
    const head = (...texts) => make("thead", {}, make("tr", {}, ...texts.map((text, k) => make("th", { scope: "col", class: k ? "number" : null }, text))));
    const number = (share) => make("td", { class: "number" }, percent(share));
    const models = make(
      "table", {},
      make("caption", {}, `All ${photosOf(data.photosOf.val)} of val`),
      head("Model", "mIoU", "without CRF", "pixel accuracy"),
      make("tbody", {}, ...data.models.map((each) => make("tr", { class: each.id === chosen.model ? "chosen" : null }, make("th", { scope: "row" }, each.name), number(each.mean), number(each.plain), number(each.accuracy)))),
    );
    const model = data.models.find((each) => each.id === chosen.model);
    const classes = make(
      "table", {},
      make("caption", {}, `${model.name}: IoU of each class, with CRF`),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Class"), make("th", { scope: "col", class: "number" }, "IoU"), make("td"))),
      make("tbody", {}, ...data.classes.map((each, label) => make(
        "tr", { class: label === chosen.label ? "chosen" : null },
        make("th", { scope: "row" }, swatch(label), each.name),
        number(model.iou[label]),
        make("td", { class: "bar-cell" }, make("span", { class: "meter" }, make("i", { style: { "--part": `${100 * (model.iou[label] || 0)}%` } }))),
      ))),
    );
    const wrapped = [models, classes].map((table) => make("div", { class: "scroll" }, table));
    at("score-tables").replaceChildren(...wrapped);
  }

  function cell(count, total, right) {
    const share = total ? count / total : 0;
    const strength = Math.sqrt(share).toFixed(3);
    const shown = share >= 0.005 ? (100 * share).toFixed(0) : share > 0 ? "·" : "";
    const classes = [share ? (right ? "right" : "wrong") : "", share > 0.6 ? "strong" : ""].join(" ").trim();
    return make("td", { class: classes || null, title: `${count} pixels`, style: { "--strength": strength } }, shown);
  }

  function confusion() {
    if (!data.truth) return;
    const model = data.models.find((each) => each.id === chosen.model);
    at("confusion-note").textContent = `${model.name} with CRF on all of val. Of the pixels of a true class (row), the share in percent that is predicted as each class (column). A dot is less than half a percent.`;
    const columns = data.classes.map((each, label) => make("th", { scope: "col", title: each.name }, make("span", {}, swatch(label), each.name)));
    const rows = model.confusion.map((row, label) => {
      const total = row.reduce((sum, count) => sum + count, 0);
      return make("tr", {}, make("th", { scope: "row", title: className(label) }, swatch(label), className(label)), ...row.map((count, k) => cell(count, total, k === label)));
    });
    const corner = make("td", {}, make("span", { class: "note" }, "true ↓ predicted →"));
    at("confusion-table").replaceChildren(make("table", { class: "matrix" }, make("thead", {}, make("tr", {}, corner, ...columns)), make("tbody", {}, ...rows)));
  }

  function labelTable() {
    if (data.truth) return;
    const photos = data.photos.filter(isIn);
    const rows = data.classes.map((each, label) => {
      const given = photos.filter((photo) => (photo.given || []).includes(label));
      const found = photos.filter((photo) => (photo.found[chosen.model] || []).includes(label));
      const counts = [given.length, found.length, given.filter((photo) => found.includes(photo)).length];
      return label ? make("tr", {}, make("th", { scope: "row" }, swatch(label), each.name), ...counts.map((count) => make("td", { class: "number" }, String(count)))) : null;
    });
    const head = ["Class", "labelled", "found", "both"].map((text, k) => make("th", { scope: "col", class: k ? "number" : null }, text));
    const model = data.models.find((each) => each.id === chosen.model).name;
    at("label-table").replaceChildren(make("table", {}, make("caption", {}, model), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows.filter(Boolean))));
  }

  // ---------------------------------------------------------------- training curves
  const SVG = "http://www.w3.org/2000/svg";
  const short = (value) => String(Number(value.toPrecision(3)));

  function shape(tag, attributes, text = "") {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  }

  function curve(term) {
    const [width, height, left, right, top, bottom] = [300, 150, 40, 8, 8, 20];
    const [first, last] = [term.steps[0], term.steps[term.steps.length - 1]];
    const [low, high] = [Math.min(...term.low, ...term.mean), Math.max(...term.high, ...term.mean)];
    const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - right);
    const y = (value) => height - bottom - ((value - low) / (high - low || 1)) * (height - top - bottom);
    const points = (values) => values.map((value, k) => `${x(term.steps[k]).toFixed(1)},${y(value).toFixed(1)}`);
    const [began, ended] = [short(term.mean[0]), short(term.mean[term.mean.length - 1])];
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${term.name}: from ${began} at step ${first} to ${ended} at step ${last}` });
    svg.append(
      shape("path", { class: "axis", fill: "none", d: `M${left},${top}V${height - bottom}H${width - right}` }),
      shape("polygon", { class: "band", points: [...points(term.high), ...points(term.low).reverse()].join(" ") }),
      shape("polyline", { class: "mean", points: points(term.mean).join(" ") }),
      shape("text", { x: left - 5, y: y(high) + 7, "text-anchor": "end" }, short(high)),
      shape("text", { x: left - 5, y: height - bottom, "text-anchor": "end" }, short(low)),
      shape("text", { x: left, y: height - 6 }, `step ${first}`),
      shape("text", { x: width - right, y: height - 6, "text-anchor": "end" }, String(last)),
    );
    return make("figure", {}, make("h3", {}, term.name), svg);
  }

  function curves() {
    const network = data.training[Number(at("network").value)];
    at("curves").replaceChildren(...network.terms.filter((term) => term.steps.length).map(curve));
  }

  // ---------------------------------------------------------------- the page
  function begin() {
    at("title").textContent = `What the networks see: ${data.dataset}`;
    document.title = `${data.dataset} – RRM gallery`;
    const { val, train } = data.photosOf;
    const which = train ? `the ${val + train} that are trained on (${train}) or held out (${val})` : `the ${val} of val`;
    at("about").textContent = `${photosOf(data.photos.length)} of ${which}, seed ${data.seed}. ` +
      (data.truth ? "Predictions with CRF, beside the ground truth." : "Predictions with CRF; there is no ground truth.");
    at("rule").textContent = `Photos are chosen by rule: ${data.rule}. Doubt is 1 minus the mean probability of what is predicted, before the CRF, times the overlap of predicted classes and image-level labels.`;
    const parts = { photos: true, scores: data.truth, labels: !data.truth, confusion: data.truth, training: data.training.length > 0 };
    for (const [id, is] of Object.entries(parts)) {
      at(id).hidden = !is;
      if (is) at("parts").append(make("a", { href: `#${id}` }, at(`${id}-heading`).textContent));
    }
    filters();
    layerChips();
    viewer();
    draw();
    scoreTables();
    confusion();
    labelTable();
    if (data.training.length) {
      at("network").append(...data.training.map((each, k) => option(k, each.name)));
      at("network").addEventListener("change", curves);
      curves();
    }
  }

  begin();
})();
