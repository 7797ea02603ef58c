// Computes in the background, so that the page never stalls: loads networks and digits, attacks, compares radii.

import { climb, NORMS, Random } from "./attack.js";
import { Network } from "./network.js";
import { crc32, parse } from "./safetensors.js";

const VERDICT = 0x5eed; // seed of the noise that judges, which no attack has seen
const SPACED = 1000; // seeds of attacks are this far apart

let index = null;
const networks = new Map(), digits = new Map(); // promises, by id

async function bytesOf(path, what) {
  const response = await fetch(new URL(path, import.meta.url)).catch(() => null);
  if (!response?.ok) throw new Error(`${what} could not be loaded (${path}: ${response ? response.status : "no answer"}).`);
  return new Uint8Array(await response.arrayBuffer());
}

async function checked({ file, bytes, crc32: sum }, what) {
  const content = await bytesOf(file, what);
  if (content.length !== bytes || crc32(content) !== sum) {
    throw new Error(`${what} are damaged: ${content.length} bytes came, expected ${bytes} with another checksum.`);
  }
  return content;
}

// A promise that is kept, unless it failed: then the next call tries again.
function once(store, key, make) {
  if (!store.has(key)) store.set(key, make().catch((error) => { store.delete(key); throw error; }));
  return store.get(key);
}

const network = (id) => once(networks, id, async () => {
  const entry = index.models.find((model) => model.id === id);
  const content = await checked(entry, `The weights of ${entry.name}`);
  try {
    return new Network(content);
  } catch (error) {
    throw new Error(`The lab cannot compute ${entry.name}: ${error.message}.`);
  }
});

// Where a code stands: on the map, how far from the clean code in distances between classes, and nearest to which class.
function placed(net, mean, clean) {
  const { "map.axes": axes, "map.centre": centre, "map.means": means } = net.tensors, D = net.dim, place = [0, 0];
  let moved = 0, nearest = -1, least = Infinity;
  for (let k = 0; k < D; k++) {
    for (const axis of [0, 1]) place[axis] += (mean[k] - centre.data[k]) * axes.data[axis * D + k];
    moved += (mean[k] - clean[k]) ** 2;
  }
  for (let c = 0; c < net.about.classes; c++) {
    let distance = 0;
    for (let k = 0; k < D; k++) distance += (mean[k] - means.data[c * D + k]) ** 2;
    if (distance < least) [least, nearest] = [distance, c];
  }
  return { place, moved: Math.sqrt(moved) / net.about.distance, nearest };
}

const largest = (values) => values.indexOf(Math.max(...values));

// What is needed to attack: the clean code, the noise that judges, the label (what the network says, if none is known).
function prepared(net, x, label) {
  const noise = new Random(VERDICT).normals(net.about.samples * net.dim), clean = net.encode(x);
  const probabilities = (code) => Array.from(net.classify(code, noise).log, Math.exp);
  const said = probabilities(clean);
  return { clean, probabilities, said, label: label ?? largest(said) };
}

function start(x, { start: from, norm, eps }, random) {
  return from === "image" ? x : NORMS[norm].random(x, eps, random);
}

const KINDS = {
  async index() {
    const text = new TextDecoder().decode(await bytesOf("index.json", "The list of networks"));
    try {
      return (index = JSON.parse(text));
    } catch {
      throw new Error("The list of networks is damaged: index.json is not JSON.");
    }
  },

  // the images that can be picked: bytes, one after the other
  digits: ({ set }) => once(digits, set, async () => {
    const content = await checked(index.datasets[set], "The digits");
    const { tensors, metadata } = parse(content);
    return { images: tensors.images.data, count: tensors.images.shape[0], note: metadata.note };
  }),

  // every iterate of one attack, with what the page shows of it
  async attack({ model, x, label, settings, seed }) {
    const net = await network(model), random = new Random(SPACED * seed), S = net.about.samples * net.dim;
    const { clean, probabilities, said, label: climbed } = prepared(net, x, label);
    const frames = [];
    for (const { x: at, score, code } of climb(net, x, start(x, settings, random), settings, climbed, () => random.normals(S))) {
      frames.push({ x: at, score, mean: code.mean, scale: code.scale, said: probabilities(code), ...placed(net, code.mean, clean.mean) });
    }
    const { name, chapter, samples, classes, gaussian, distance } = net.about;
    return {
      about: { name, chapter, samples, classes, distance, gaussian: Boolean(gaussian) },
      clean: { ...clean, said, ...placed(net, clean.mean, clean.mean) },
      points: net.tensors["map.points"].data,
      frames,
    };
  },

  // how far the code has moved at the end of attacks with growing radii
  async sweep({ model, x, label, settings, seed, radii }) {
    const net = await network(model), S = net.about.samples * net.dim;
    const { clean, probabilities, said, label: climbed } = prepared(net, x, label);
    const home = placed(net, clean.mean, clean.mean).nearest;
    const ends = radii.map((eps) => {
      const random = new Random(SPACED * seed), own = { ...settings, eps };
      let last;
      for (last of climb(net, x, start(x, own, random), own, climbed, () => random.normals(S)));
      const { moved, nearest } = placed(net, last.code.mean, clean.mean);
      return { eps, moved, left: nearest !== home, fooled: largest(probabilities(last.code)) !== largest(said) };
    });
    return { said: largest(said), ends };
  },
};

addEventListener("message", async ({ data: { id, kind, ...given } }) => {
  try {
    postMessage({ id, value: await KINDS[kind](given) });
  } catch (error) {
    postMessage({ id, problem: error.message });
  }
});
