"""Training: model backends, data, sampler, exact state. It needs torch, and only `worker` imports it."""
