"""Asks the model beside this file, with llama.cpp: prompt.py QUESTION."""

import os
import sys

import xllamacpp

TEMPLATE = "{}"

parameters = xllamacpp.CommonParams()
parameters.model.path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model/tiny.gguf")
parameters.n_ctx = 256
parameters.cpuparams.n_threads = 2
parameters.fit_params = False
# The most probable token each time, so that equal weights and questions give equal answers.
parameters.sampling.temp = 0
server = xllamacpp.Server(parameters)
answer = server.handle_completions({"prompt": TEMPLATE.format(sys.argv[1]), "n_predict": 24})
print(ascii(answer["choices"][0]["text"]))
