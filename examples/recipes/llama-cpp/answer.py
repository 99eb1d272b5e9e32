"""Completes prompts with llama.cpp: answer.py MODE MODEL PROMPT….

MODE is the way in which llama.cpp loads the model: mmap (the default), none (--no-mmap) or direct_io. Prints whether
the file is mapped, then the tokens of the answers with their probabilities, as JSON.
"""

import json
import sys

import xllamacpp

mode, model, *prompts = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = model
parameters.load_mode = xllamacpp.llama_load_mode[f"LLAMA_LOAD_MODE_{mode.upper()}"]
parameters.n_ctx = 256
parameters.n_predict = 32
parameters.cpuparams.n_threads = 2
parameters.fit_params = False
parameters.sampling.temp = 0
parameters.sampling.seed = 1
server = xllamacpp.Server(parameters)
answers = []
for prompt in prompts:
    answer = server.handle_completions({"prompt": prompt, "n_predict": 32, "n_probs": 1})
    tokens = answer["choices"][0]["logprobs"]["content"]
    answers.append([[token["id"], token["logprob"]] for token in tokens])
with open("/proc/self/maps", encoding="utf-8") as maps:
    mapped = any(line.rstrip("\n").endswith(model) for line in maps)
print("mapped" if mapped else "not mapped")
print(json.dumps(answers))
