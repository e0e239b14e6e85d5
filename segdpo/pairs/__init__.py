"""Where preferences come from: sources of masks, judges of masks, and rules that turn judgements into pairs."""
