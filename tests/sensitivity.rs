//! `sensitivity` from its command line to its files: small runs on `digits`, with the built binary.

fn main() {}
