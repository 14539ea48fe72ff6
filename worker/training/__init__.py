"""What trains: model backends, data, sampler, exact state. Needs torch; nothing outside `worker` imports it."""
