// What the lab's networks answer to the questions of tests/test_lab_network.py; the same in Node and in a browser.
//   read: async (path below the lab's folder) -> Uint8Array; modules: the lab's modules by name.
//   most: images of a question that are attacked.
//   returns { model id: { logits, gradients, sameStart, ownStart, milliseconds } }.
export async function answers(read, { network, attack, safetensors }, most) {
  const index = JSON.parse(new TextDecoder().decode(await read("index.json"))), found = {};
  for (const { id, file } of index.models) {
    let question;
    try {
      question = safetensors.parse(await read(`questions/${id.replace("/", "-")}.safetensors`)).tensors;
    } catch {
      continue; // not asked
    }
    found[id] = answer(new network.Network(await read(file)), question, attack, most);
  }
  return found;
}

function answer(net, { images, starts, labels, noise, few, eps, steps, own }, { ascent, climb, NORMS, Random }, most) {
  const [count, size] = images.shape, S = net.about.samples * net.dim, radius = eps.data[0];
  const image = (i) => images.data.slice(i * size, (i + 1) * size), start = (i) => starts.data.slice(i * size, (i + 1) * size);
  const noiseAt = (step) => noise.data.subarray(step * S, (step + 1) * S);
  const largest = (values) => values.indexOf(Math.max(...values));
  const settings = { objective: "loss", norm: "linf", eps: radius, steps: steps.data[0] };
  const result = { logits: [], gradients: {}, sameStart: [], ownStart: [[], []], milliseconds: [] };
  for (let i = 0; i < count; i++) {
    const { logits, log } = net.classify(net.encode(image(i)), noiseAt(0));
    result.logits.push(Array.from(S ? log : logits));
  }
  for (const objective of ["loss", "kl", "wasserstein", "cosine"]) {
    result.gradients[objective] = [];
    for (let i = 0; i < few.data[0]; i++) {
      const given = { label: labels.data[i], clean: net.encode(image(i)) };
      const { score, gradient } = ascent(net, objective, start(i), given, noiseAt(0));
      result.gradients[objective].push({ score, gradient: Array.from(gradient) });
    }
  }
  const attacked = (i, from, fresh, verdict) => {
    let last;
    for (last of climb(net, image(i), from, settings, labels.data[i], fresh));
    return largest(net.classify(last.code, verdict()).log);
  };
  for (let i = 0; i < Math.min(count, most); i++) {
    const begin = performance.now();
    result.sameStart.push(attacked(i, start(i), noiseAt, () => noiseAt(0)));
    result.milliseconds.push(performance.now() - begin);
    if (!own.data[0] || most < count) continue;
    for (const run of [0, 1]) { // the verdict's noise is new to the attack
      const random = new Random(2 * i + run), fresh = () => random.normals(S);
      result.ownStart[run].push(attacked(i, NORMS.linf.random(image(i), radius, random), fresh, fresh));
    }
  }
  return result;
}
