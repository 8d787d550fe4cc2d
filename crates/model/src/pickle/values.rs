//! What a pickle is made of while it runs, and what it leaves.

use safetensors::tensor::Dtype;

use super::globals::Global;
use crate::json::shortened;

/// Something on the stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'p> {
    None,
    Bool(bool),
    Integer(i64),
    /// One of more than 64 bits, its bytes little-endian.
    Long(&'p [u8]),
    Float,
    Text(&'p str),
    Global(Global),
    /// By its index.
    Object(usize),
}

/// Something with parts.
#[derive(Debug)]
pub(super) enum Object<'p> {
    Tuple(Vec<Value<'p>>),
    List(Vec<Value<'p>>),
    Table(Vec<(Value<'p>, Value<'p>)>),
    Storage(Storage<'p>),
    Tensor(Tensor<'p>),
}

/// Numbers that lie outside of the pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'p> {
    pub(super) key: &'p str,
    /// `None` where tensors say it.
    pub(super) dtype: Option<Dtype>,
    /// How many there are; bytes, where they have no format.
    pub(super) numbers: usize,
}

impl Storage<'_> {
    /// Bytes that it has.
    pub(super) fn bytes(&self) -> Option<usize> {
        self.numbers.checked_mul(self.dtype.map_or(1, |dtype| dtype.bitsize() / 8))
    }
}

/// A part of a storage; as many strides as extents.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'p> {
    pub(super) storage: Storage<'p>,
    pub(super) dtype: Dtype,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// What came of a pickle.
#[derive(Debug)]
pub(super) struct Unpickled<'p> {
    pub(super) value: Value<'p>,
    pub(super) objects: Vec<Object<'p>>,
    /// Bytes that the pickle takes.
    pub(super) length: usize,
}

impl<'p> Unpickled<'p> {
    /// The object that `value` is.
    pub(super) fn object(&self, value: Value<'p>) -> Option<&Object<'p>> {
        if let Value::Object(index) = value { self.objects.get(index) } else { None }
    }

    /// What `value` is, in words.
    pub(super) fn words(&self, value: Value<'p>) -> String {
        words(&self.objects, value)
    }
}

/// What `value` is, in words: of a thing with parts only its kind, as it may be part of itself.
pub(super) fn words(objects: &[Object<'_>], value: Value<'_>) -> String {
    let kind = match value {
        Value::None => "None",
        Value::Bool(_) => "a truth value",
        Value::Integer(number) => return number.to_string(),
        Value::Long(_) => "a large number",
        Value::Float => "a number that is not whole",
        Value::Text(text) => return format!("'{}'", shortened(text)),
        Value::Global(_) => "a class or function",
        Value::Object(index) => match objects.get(index) {
            Some(Object::Tuple(_)) => "a tuple",
            Some(Object::List(_)) => "a list",
            Some(Object::Table(_)) => "a table",
            Some(Object::Storage(_)) => "a storage",
            Some(Object::Tensor(_)) => "a tensor",
            None => "nothing",
        },
    };
    kind.to_owned()
}
