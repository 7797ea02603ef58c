// What the panel is set to, and the link that holds it.

export const OBJECTIVES = {
  loss: "the loss of the label",
  kl: "the KL divergence of the codes",
  wasserstein: "the Wasserstein distance of the codes",
  cosine: "the angle of the codes (2 − 2 cos)",
};
export const NORMS = { linf: "every pixel by at most (l∞)", l2: "the whole image by at most (l2)" };
export const STARTS = { random: "a random point of the ball", image: "the image itself" };
export const LIMITS = { linf: { most: 0.5, step: 0.01, usual: 0.15 }, l2: { most: 5, step: 0.05, usual: 1 } };
export const MOST_STEPS = 100;

const PREFIX = "#lab?";

export const usual = {
  set: "digits", image: 0, a: "", b: "", maximise: "loss", norm: "linf", eps: 0.15, steps: 20, start: "random", seed: 1,
  drawing: null,
};

const quoted = (text) => `“${text.length > 40 ? `${text.slice(0, 40)}…` : text}”`;

function choice(names) {
  return (text) => {
    if (!names.includes(text)) throw new Error(`${quoted(text)}, expected one of ${names.join(", ")}`);
    return text;
  };
}

function number(least, most, whole) {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= least && value <= most) || (whole && !Number.isInteger(value))) {
      throw new Error(`${quoted(text)}, expected a ${whole ? "whole " : ""}number from ${least} to ${most}`);
    }
    return value;
  };
}

const encoded = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

// The pixels of a drawing, as bytes.
function decoded(count) {
  return (text) => {
    let bytes = null;
    try {
      bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
    } catch { /* said below */ }
    if (bytes?.length !== count) throw new Error(`${quoted(text)}, expected ${count} pixels in base 64`);
    return bytes;
  };
}

const product = (shape) => shape.reduce((all, n) => all * n, 1);

// A state from the text of a link, over `base`.
//   text: "a=...&b=...", or a location's hash.
//   index: the lab's list of networks and data sets.
//   returns { state, problems }: what does not parse is left as in `base` and named in a sentence.
export function read(text, index, base = usual) {
  const state = { ...base }, problems = [];
  const given = new URLSearchParams(text.startsWith(PREFIX) ? text.slice(PREFIX.length) : text);
  const take = (key, name, parse) => {
    if (!given.has(key)) return;
    try {
      state[name] = parse(given.get(key));
    } catch (error) {
      problems.push(`The link says ${key} = ${error.message}.`);
    }
  };
  take("set", "set", choice(Object.keys(index.datasets)));
  if (given.has("set") && state.set !== base.set) state.a = state.b = "";
  const models = index.models.filter(({ dataset }) => dataset === state.set).map(({ id }) => id);
  const { count, shape } = index.datasets[state.set];
  take("a", "a", choice(models));
  take("b", "b", choice(models));
  take("image", "image", number(0, count - 1, true));
  take("maximise", "maximise", choice(Object.keys(OBJECTIVES)));
  take("norm", "norm", choice(Object.keys(NORMS)));
  if (given.has("norm") && state.norm !== base.norm) state.eps = LIMITS[state.norm].usual;
  take("eps", "eps", number(0, LIMITS[state.norm].most));
  take("steps", "steps", number(1, MOST_STEPS, true));
  take("start", "start", choice(Object.keys(STARTS)));
  take("seed", "seed", number(0, 1e6, true));
  take("drawing", "drawing", decoded(product(shape)));
  const known = ["set", "a", "b", "image", "maximise", "norm", "eps", "steps", "start", "seed", "drawing"];
  for (const key of given.keys()) if (!known.includes(key)) problems.push(`The link says ${quoted(key)}, which the lab does not know.`);
  return { state, problems };
}

// The link's hash for a state.
export function write(state) {
  const { drawing, image, ...rest } = state;
  const shown = drawing ? { ...rest, drawing: encoded(drawing) } : { ...rest, image };
  const text = Object.entries(shown).map(([key, value]) => `${key}=${encodeURIComponent(value).replaceAll("%2F", "/")}`);
  return PREFIX + text.join("&");
}

export const inLink = (hash) => hash.startsWith(PREFIX);
