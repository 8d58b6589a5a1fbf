"""Computing a run again and comparing: replay, verify, equivalence, doctor."""
