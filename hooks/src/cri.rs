//! The Container Runtime Interface, as far as Linux containers need it.

pub use crate::proto::runtime::v1;

/// Go's `omitempty`: fields that hold their zero value are left out of JSON.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
