//! Panics as errors: not every operator of tch has a fallible call that reads well, and where one fails (a full memory, say) a user shall read
//! a sentence and find the run closed, what was computed kept.

use anyhow::{Result, anyhow};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once, PoisonError};

/// The sentence of a panic that nobody has taken.
static KEPT: Mutex<Option<String>> = Mutex::new(None);

/// From now on a panic prints nothing, but is kept for [`take`]. With `RUST_BACKTRACE` it is printed as ever.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        let traced = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
            let text = sentence(info.payload(), &place.unwrap_or_default());
            KEPT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
            if traced {
                usual(info);
            }
        }));
    });
}

/// What a panic said, after [`keep`], if nobody has taken it.
pub fn take() -> Option<String> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What `work` returns; a panic in it is an error.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // Whoever calls this ends with the error: nobody sees what a panic left half done.
    let result = catch_unwind(AssertUnwindSafe(work));
    result.unwrap_or_else(|payload| Err(anyhow!(take().unwrap_or_else(|| sentence(&*payload, "")))))
}

fn sentence(payload: &dyn Any, place: &str) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    // tch's operators unwrap: libtorch's message is then printed as a string's `Debug`, its C++ backtrace behind it.
    let text = text.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(text);
    let text = text.split("\\nframe #").next().unwrap_or(text);
    let text = text.lines().next().unwrap_or(text).trim_end();
    let text = text.strip_prefix("Torch(\"").unwrap_or(text);
    if text.contains("allocate memory") || text.contains("out of memory") {
        format!("the memory is full: {text}; fewer --workers need less")
    } else {
        format!("the computation stopped: {text}{place}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_sentence() {
        let message = |work: fn()| {
            let error = caught::<()>(|| {
                work();
                Ok(())
            });
            error.unwrap_err().to_string()
        };
        let full = message(|| {
            panic!(
                "called `Result::unwrap()` on an `Err` value: Torch(\"DefaultCPUAllocator: can't allocate memory: you \
                 tried to allocate 493648 bytes.\\nframe #0: c10::alloc_cpu\\n\")"
            )
        });
        let text = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 493648 bytes.";
        assert_eq!(full, format!("the memory is full: {text}; fewer --workers need less"));
        let other = message(|| panic!("index {} out of bounds\nmore", 3));
        assert!(other.ends_with("index 3 out of bounds"), "{other}");
        assert_eq!(caught(|| Ok(1)).unwrap(), 1);
        assert_eq!(caught::<()>(|| Err(anyhow!("as it was"))).unwrap_err().to_string(), "as it was");
    }
}
