// Asks the worker, and gives its answers as promises.

export class Engine {
  constructor() {
    this.waiting = new Map();
    this.last = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data: { id, value, problem } }) => {
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (problem === undefined) resolve(value);
      else reject(new Error(problem));
    });
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      for (const { reject } of this.waiting.values()) reject(new Error("The lab's background script could not be started."));
      this.waiting.clear();
    });
  }

  // kind: "index", "digits", "attack" or "sweep", see worker.js. Rejects with a sentence for the reader.
  ask(kind, given = {}) {
    return new Promise((resolve, reject) => {
      this.waiting.set((this.last += 1), { resolve, reject });
      this.worker.postMessage({ id: this.last, kind, ...given });
    });
  }
}
