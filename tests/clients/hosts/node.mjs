// node-llama-cpp's prebuilt binary: GPU MODEL PROMPT prints a greedy answer, GPU is "false" or "vulkan".
import {getLlama, LlamaCompletion} from "node-llama-cpp";

const [gpu, modelPath, prompt] = process.argv.slice(2);
const llama = await getLlama({gpu: gpu === "false" ? false : gpu, build: "never", progressLogs: false, logLevel: "error"});
const model = await llama.loadModel({modelPath, gpuLayers: gpu === "false" ? 0 : "max"});
const context = await model.createContext({contextSize: 256, threads: 1});
const completion = new LlamaCompletion({contextSequence: context.getSequence()});
const answer = await completion.generateCompletion(model.tokenize(prompt, true), {maxTokens: 32, temperature: 0});
console.log(answer);
if (gpu !== "false") console.error("device: " + (await llama.getGpuDeviceNames()).join(", ") + ", layers there: " + model.gpuLayers);
process.exit(0);
