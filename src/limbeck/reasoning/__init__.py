"""Methods that teach chains of thought, tool use and judgement by reward."""
