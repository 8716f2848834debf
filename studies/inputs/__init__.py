"""What a study is fed: the quality of rationales and of logit caches."""
