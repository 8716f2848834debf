"""Questions and rationales as token ids: tokenized once, mapped into memory, selected."""
