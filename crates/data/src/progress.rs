//! How a download tells how far it is, without this crate knowing any progress bar.

/// Receives the progress of downloads. `()` is the silent one.
pub trait Progress: Sync {
    /// A piece of work begins: a sentence for a person, and its size in bytes where known.
    fn begin(&self, what: &str, total_bytes: Option<u64>);
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);
    /// The piece of work that began last is over, well or not.
    fn end(&self);
}

impl Progress for () {
    fn begin(&self, _what: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}
