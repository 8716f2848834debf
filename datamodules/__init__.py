"""Questions, prompts, rationales, tokens and the logit cache, up to the batches that a student trains on."""
