//! The numbers of tensors as slices, for kernels of our own.

use tch::kind::Element;
use tch::{Device, Tensor};

/// Whether a tensor is what the functions below take: contiguous, of kind T, on the CPU.
pub fn is_plain<T: Element>(tensor: &Tensor) -> bool {
    tensor.is_contiguous() && tensor.kind() == T::KIND && tensor.device() == Device::Cpu
}

fn check<T: Element>(tensor: &Tensor) {
    assert!(is_plain::<T>(tensor), "callers ask first");
}

/// The numbers of a contiguous tensor of kind T on the CPU.
pub fn slice<T: Element>(tensor: &Tensor) -> &[T] {
    check::<T>(tensor);
    if tensor.numel() == 0 {
        // Its pointer may be null.
        return &[];
    }
    // SAFETY: contiguous, on the CPU and of T's kind; the borrow keeps the storage alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), tensor.numel()) }
}

/// The same, to be written to.
///
/// # Safety
/// Nothing else may look at the tensor's numbers meanwhile: it was just made, and this is called for it once.
#[allow(clippy::mut_from_ref)] // a Tensor is a handle: its numbers are not behind the reference
pub unsafe fn slice_mut<T: Element>(tensor: &Tensor) -> &mut [T] {
    check::<T>(tensor);
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as above, and the caller guarantees that nothing else looks at it.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) }
}
