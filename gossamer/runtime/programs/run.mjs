// Runs the network in a browser or in Node: npm install onnxruntime-web
// Browser: import { load, classify } from "./run.mjs"; classify(await load(), context.getImageData(0, 0, w, h))
// Node:    node run.mjs photo.ppm   (a binary PPM: `magick photo.jpg photo.ppm`)
import * as ort from "onnxruntime-web";

const FORM = /*FORM*/;
const LABELS = /*LABELS*/;
const FILE = "/*MODEL_FILE*/";
const [HEIGHT, WIDTH] = [FORM.size, FORM.width ?? FORM.size];

const KERNELS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (x) => {
      x = Math.abs(x);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
};

/** One direction of an image of 3 channels, scaled with the filter as wide as the reduction. */
function resized(pixels, width, height, from, to, size) {
  const kernel = KERNELS[FORM.interpolation] ?? KERNELS.bilinear;
  const scale = (to - from) / size;
  const wide = Math.max(scale, 1);
  const result = new Float32Array(size * height * 3);
  for (let i = 0; i < size; i++) {
    const center = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - kernel.support * wide + 0.5));
    const last = Math.min(width, Math.floor(center + kernel.support * wide + 0.5));
    const weights = [];
    for (let j = first; j < last; j++) weights.push(kernel.at((j - center + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    for (let y = 0; y < height; y++)
      for (let c = 0; c < 3; c++) {
        let value = 0;
        for (let j = first; j < last; j++) value += (weights[j - first] / sum) * pixels[(y * width + j) * 3 + c];
        result[(i * height + y) * 3 + c] = Math.min(255, Math.max(0, Math.round(value))); // rows become columns
      }
  }
  return result;
}

/** The input of the network, of an image { data (RGBA), width, height }. */
export function prepared(image) {
  const { data, width, height } = image;
  const rgb = new Float32Array(width * height * 3);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) rgb[3 * i + c] = data[4 * i + c];
  let [left, top, right, bottom] = [0, 0, width, height];
  if (FORM.crop !== null) {
    const covered = (side) => Math.floor(side / FORM.crop + 1e-6);
    const scale = Math.max(covered(WIDTH) / width, covered(HEIGHT) / height);
    left = Math.floor((Math.round(width * scale) - WIDTH) / 2) / scale;
    top = Math.floor((Math.round(height * scale) - HEIGHT) / 2) / scale;
    right = Math.min(width, left + WIDTH / scale);
    bottom = Math.min(height, top + HEIGHT / scale);
  }
  const turned = resized(rgb, width, height, left, right, WIDTH);
  const small = resized(turned, height, WIDTH, top, bottom, HEIGHT); // turned back: rows of WIDTH pixels
  const channels = FORM.channels;
  const x = new Float32Array(channels * HEIGHT * WIDTH);
  for (let row = 0; row < HEIGHT; row++)
    for (let column = 0; column < WIDTH; column++) {
      const pixel = 3 * (row * WIDTH + column);
      for (let c = 0; c < channels; c++) {
        const [r, g, b] = small.subarray(pixel, pixel + 3);
        const grey = Math.floor((r * 19595 + g * 38470 + b * 7471 + 32768) / 65536);
        const value = channels === 1 ? grey : small[pixel + (FORM.order === "bgr" ? 2 - c : c)];
        const place = FORM.layout === "nhwc" ? (row * WIDTH + column) * channels + c : (c * HEIGHT + row) * WIDTH + column;
        x[place] = (value / 255 - FORM.mean[c]) / FORM.std[c];
      }
    }
  const shape = FORM.layout === "nhwc" ? [1, HEIGHT, WIDTH, channels] : [1, channels, HEIGHT, WIDTH];
  return new ort.Tensor("float32", x, shape);
}

/** A session of the file beside this program, or of its bytes. */
export async function load(source = FILE) {
  return ort.InferenceSession.create(source);
}

/** The outputs by name, and the three best classes where the first output is one row of numbers. */
export async function classify(session, image) {
  const outputs = await session.run({ [session.inputNames[0]]: prepared(image) });
  const first = outputs[session.outputNames[0]];
  const best = first.dims.length === 2 ? [...first.data.keys()].sort((a, b) => first.data[b] - first.data[a]).slice(0, 3) : [];
  return { outputs, best: best.map((i) => ({ label: LABELS[i] ?? String(i), score: first.data[i] })) };
}

/** A binary PPM file as an image. */
function ppm(bytes) {
  const head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(String.fromCharCode(...bytes.subarray(0, 64)));
  const [width, height] = [Number(head[1]), Number(head[2])];
  const data = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) data[4 * i + c] = bytes[head[0].length + 3 * i + c];
  return { data, width, height };
}

if (typeof process !== "undefined" && process.argv?.[2]) {
  const { readFile } = await import("node:fs/promises");
  const session = await load(await readFile(new URL(FILE, import.meta.url)));
  for (const path of process.argv.slice(2)) {
    const { outputs, best } = await classify(session, ppm(await readFile(path)));
    const shapes = session.outputNames.map((name) => outputs[name].dims.join("x"));
    console.log(path, ...(best.length ? best.map((one) => `${one.label}=${one.score.toFixed(3)}`) : shapes));
  }
}
