//! The machine that a pickle is a program for, cut down to what builds tables of tensors.
//!
//! The choice behind it: values are small, and whatever has parts lies in one list of objects and is
//! meant by its index. So nothing here recurs and nothing is copied, however often a pickle takes
//! something again; each instruction takes bounded memory, and of instructions, of what waits on the
//! stack, of objects and of what is remembered there are bounded numbers.

use std::collections::HashMap;

use super::Fault;
use super::code::{Code, small};
use super::globals::Global;
use super::values::{Object, Storage, Tensor, Unpickled, Value, words};
use crate::json::shortened;

/// A tensor takes some 35 instructions and seven objects, and of these three are remembered.
const INSTRUCTIONS: usize = 1 << 22;
const OBJECTS: usize = 1 << 20;
const MEMORY: usize = 1 << 20;
/// Python writes out at most a thousand members of a table at once.
const STACK: usize = 1 << 16;
/// The most dimensions of a tensor.
const DIMENSIONS: usize = 16;

/// Instructions of all protocols that are refused, for the sake of their names.
const REFUSED: [(u8, &str); 26] = [
    (b'F', "FLOAT"),
    (b'I', "INT"),
    (b'L', "LONG"),
    (b'P', "PERSID"),
    (b'S', "STRING"),
    (b'V', "UNICODE"),
    (b'd', "DICT"),
    (b'g', "GET"),
    (b'i', "INST"),
    (b'l', "LIST"),
    (b'o', "OBJ"),
    (b'p', "PUT"),
    (b'B', "BINBYTES"),
    (b'C', "SHORT_BINBYTES"),
    (0x81, "NEWOBJ"),
    (0x82, "EXT1"),
    (0x83, "EXT2"),
    (0x84, "EXT4"),
    (0x8e, "BINBYTES8"),
    (0x8f, "EMPTY_SET"),
    (0x90, "ADDITEMS"),
    (0x91, "FROZENSET"),
    (0x92, "NEWOBJ_EX"),
    (0x96, "BYTEARRAY8"),
    (0x97, "NEXT_BUFFER"),
    (0x98, "READONLY_BUFFER"),
];

/// Runs the pickle that `bytes` begin with.
pub(super) fn run(bytes: &[u8]) -> Result<Unpickled<'_>, Fault> {
    let mut machine = Machine {
        code: Code::new(bytes),
        stack: Vec::new(),
        marks: Vec::new(),
        memory: HashMap::new(),
        objects: Vec::new(),
    };
    for _ in 0..INSTRUCTIONS {
        let at = machine.code.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(value)) => {
                let Machine { code, objects, .. } = machine;
                return Ok(Unpickled { value, objects, length: code.at });
            }
            Err(Fault { what, expected, found }) => {
                return Err(Fault::new(format!("{what} at byte {at}"), expected, found));
            }
        }
    }
    Err(Fault::new("the pickle", format!("of at most {INSTRUCTIONS} instructions"), "longer"))
}

struct Machine<'p> {
    code: Code<'p>,
    stack: Vec<Value<'p>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memory: HashMap<usize, Value<'p>>,
    objects: Vec<Object<'p>>,
}

impl<'p> Machine<'p> {
    /// Runs one instruction; the last leaves the result.
    fn step(&mut self) -> Result<Option<Value<'p>>, Fault> {
        match self.code.byte()? {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            0x95 => drop(self.code.array::<8>()?), // FRAME: of concern to who reads a stream
            b'(' => self.mark()?,
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_marked()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'G' => {
                self.code.array::<8>()?;
                self.push(Value::Float)?;
            }
            op @ (b'J' | b'K' | b'M' | 0x8a | 0x8b) => self.number(op)?,
            op @ (b'X' | 0x8c | 0x8d | b'T' | b'U') => {
                let text = self.text(op)?;
                self.push(Value::Text(text))?;
            }
            op @ (b'q' | b'r' | b'h' | b'j' | 0x94) => self.remember(op)?,
            op @ (b')' | 0x85 | 0x86 | 0x87 | b't') => self.tuple(op)?,
            b']' => self.push_object(Object::List(Vec::new()))?,
            b'}' => self.push_object(Object::Table(Vec::new()))?,
            op @ (b'a' | b'e') => self.append(op)?,
            op @ (b's' | b'u') => self.set(op)?,
            op @ (b'c' | 0x93) => self.global(op)?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => self.storage()?,
            other => {
                let name = REFUSED.into_iter().find(|(op, _)| *op == other);
                let found = name.map_or_else(|| format!("{other:#04x}"), |(_, name)| name.into());
                return Err(Fault::new("the instruction", "one that builds tensors", found));
            }
        }
        Ok(None)
    }

    fn push(&mut self, value: Value<'p>) -> Result<(), Fault> {
        if self.stack.len() == STACK {
            return Err(Fault::new("the stack", format!("of at most {STACK} values"), "higher"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn push_object(&mut self, object: Object<'p>) -> Result<(), Fault> {
        if self.objects.len() == OBJECTS {
            return Err(Fault::new(
                "the pickle",
                format!("of at most {OBJECTS} objects"),
                "larger",
            ));
        }
        self.objects.push(object);
        self.push(Value::Object(self.objects.len() - 1))
    }

    /// What lies on top, above the last mark.
    fn top(&self) -> Result<Value<'p>, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).unwrap_or_default();
        above.last().copied().ok_or_else(|| Fault::new("the stack", "high enough", "empty"))
    }

    fn pop(&mut self) -> Result<Value<'p>, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn mark(&mut self) -> Result<(), Fault> {
        if self.marks.len() == STACK {
            return Err(Fault::new("the stack", format!("of at most {STACK} marks"), "deeper"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// All values above the last mark, and not the mark.
    fn pop_marked(&mut self) -> Result<Vec<Value<'p>>, Fault> {
        let unmarked = || Fault::new("the stack", "marked", "without a mark");
        let mark = self.marks.pop().ok_or_else(unmarked)?;
        Ok(self.stack.split_off(mark))
    }

    fn protocol(&mut self) -> Result<(), Fault> {
        match self.code.byte()? {
            0..=5 => Ok(()),
            found => Err(Fault::new("the pickle's protocol", "2 to 5", found.to_string())),
        }
    }

    fn number(&mut self, op: u8) -> Result<(), Fault> {
        let value = match op {
            b'J' => Value::Integer(i32::from_le_bytes(self.code.array()?).into()),
            b'K' => Value::Integer(self.code.byte()?.into()),
            b'M' => Value::Integer(u16::from_le_bytes(self.code.array()?).into()),
            _ => {
                let length =
                    if op == 0x8a { self.code.length::<1>() } else { self.code.length::<4>() };
                let bytes = self.code.take(length?)?;
                small(bytes).map_or(Value::Long(bytes), Value::Integer)
            }
        };
        self.push(value)
    }

    /// Text; Python 2 wrote names as bytes.
    fn text(&mut self, op: u8) -> Result<&'p str, Fault> {
        let length = match op {
            b'U' | 0x8c => self.code.length::<1>(),
            0x8d => self.code.length::<8>(),
            _ => self.code.length::<4>(),
        }?;
        self.code.text(length)
    }

    /// Keeps what lies on top, or takes again what was kept.
    fn remember(&mut self, op: u8) -> Result<(), Fault> {
        let index = match op {
            b'q' | b'h' => self.code.length::<1>()?,
            b'r' | b'j' => self.code.length::<4>()?,
            _ => self.memory.len(),
        };
        if op == b'h' || op == b'j' {
            let kept = self.memory.get(&index).copied();
            let kept = kept.ok_or_else(|| {
                Fault::new("what is taken again", "kept before", format!("number {index}"))
            })?;
            return self.push(kept);
        }
        let top = self.top()?;
        if self.memory.len() == MEMORY {
            return Err(Fault::new(
                "the pickle",
                format!("one that keeps {MEMORY} values"),
                "larger",
            ));
        }
        self.memory.insert(index, top);
        Ok(())
    }

    fn tuple(&mut self, op: u8) -> Result<(), Fault> {
        let parts = match op {
            b')' => Vec::new(),
            b't' => self.pop_marked()?,
            _ => {
                let mut parts = vec![Value::None; usize::from(op - 0x84)];
                for part in parts.iter_mut().rev() {
                    *part = self.pop()?;
                }
                parts
            }
        };
        self.push_object(Object::Tuple(parts))
    }

    fn append(&mut self, op: u8) -> Result<(), Fault> {
        let new = if op == b'a' { vec![self.pop()?] } else { self.pop_marked()? };
        let target = self.top()?;
        match self.object_mut(target) {
            Some(Object::List(list)) => list.extend(new),
            _ => return Err(self.unfit("what is appended to", "a list", target)),
        }
        Ok(())
    }

    fn set(&mut self, op: u8) -> Result<(), Fault> {
        let new = if op == b's' {
            let value = self.pop()?;
            vec![self.pop()?, value]
        } else {
            self.pop_marked()?
        };
        let (pairs, rest) = new.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Fault::new("the number of keys and values", "even", "odd"));
        }
        let target = self.top()?;
        match self.object_mut(target) {
            Some(Object::Table(table)) => {
                table.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            _ => return Err(self.unfit("what gets members", "a table", target)),
        }
        Ok(())
    }

    fn global(&mut self, op: u8) -> Result<(), Fault> {
        let (module, name) = if op == b'c' {
            (self.code.line()?, self.code.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            let (Value::Text(module), Value::Text(name)) = (module, name) else {
                return Err(self.unfit("what the pickle refers to", "text", module));
            };
            (module, name)
        };
        self.push(Value::Global(Global::of(module, name)?))
    }

    /// Does what a function of `globals` would.
    fn reduce(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Some(Object::Tuple(arguments)) = self.object(arguments) else {
            return Err(self.unfit("what a function is called with", "a tuple", arguments));
        };
        let wrong = |name: &str| {
            let found = arguments.iter().map(|&value| words(&self.objects, value));
            let found = format!("({})", found.collect::<Vec<_>>().join(", "));
            Fault::new(
                format!("what {name} is called with"),
                "as torch writes it",
                shortened(&found),
            )
        };
        match function {
            Value::Global(Global::OrderedDict) if arguments.is_empty() => {
                self.push_object(Object::Table(Vec::new()))
            }
            Value::Global(Global::OrderedDict) => Err(wrong("OrderedDict")),
            Value::Global(global @ (Global::RebuildTensor | Global::RebuildTensorOfType)) => {
                let own = global == Global::RebuildTensorOfType;
                let tensor = self.tensor(arguments, own).ok_or_else(|| wrong("_rebuild_tensor"))?;
                self.push_object(Object::Tensor(tensor))
            }
            Value::Global(Global::RebuildParameter) => {
                let tensor = arguments.first().copied();
                let is_tensor =
                    |value: &Value<'p>| matches!(self.object(*value), Some(Object::Tensor(_)));
                let tensor = tensor.filter(is_tensor).ok_or_else(|| wrong("_rebuild_parameter"))?;
                self.push(tensor)
            }
            other => Err(self.unfit("what is called", "OrderedDict or a function of torch", other)),
        }
    }

    /// The tensor of these arguments, of which one may be its `own` format.
    fn tensor(&self, arguments: &[Value<'p>], own: bool) -> Option<Tensor<'p>> {
        let [storage, offset, shape, strides, rest @ ..] = arguments else { return None };
        let Some(&Object::Storage(storage)) = self.object(*storage) else { return None };
        // Whether gradients are wanted, and hooks; both are of training.
        let (dtype, rest) = match rest {
            [_, _, Value::Global(Global::Format(dtype)), rest @ ..] if own => (*dtype, rest),
            [_, _, rest @ ..] if !own => (storage.dtype?, rest),
            [] if !own => (storage.dtype?, rest),
            _ => return None,
        };
        // What follows says that numbers are to be negated, if it says anything.
        let nothing = |value: &Value<'p>| match self.object(*value) {
            Some(Object::Table(table)) => table.is_empty(),
            _ => *value == Value::None,
        };
        let (shape, strides) = (self.extents(*shape)?, self.extents(*strides)?);
        let fit = shape.len() == strides.len() && rest.iter().all(nothing);
        fit.then_some(Tensor { storage, dtype, offset: natural(*offset)?, shape, strides })
    }

    fn extents(&self, value: Value<'p>) -> Option<Vec<usize>> {
        let Some(Object::Tuple(extents)) = self.object(value) else { return None };
        let few = extents.len() <= DIMENSIONS;
        few.then(|| extents.iter().map(|&extent| natural(extent)).collect()).flatten()
    }

    /// Gives a table attributes, which none of a model's needs: versions of its modules.
    fn build(&mut self) -> Result<(), Fault> {
        self.pop()?;
        let target = self.top()?;
        match self.object(target) {
            Some(Object::Table(_)) => Ok(()),
            _ => Err(self.unfit("what gets attributes", "a table", target)),
        }
    }

    /// A storage, by what names it: `("storage", class, key, place, numbers)`, and before torch 1.6
    /// what part of another it is.
    fn storage(&mut self) -> Result<(), Fault> {
        let name = self.pop()?;
        let parts =
            if let Some(Object::Tuple(parts)) = self.object(name) { parts } else { &vec![] };
        let storage = match parts.as_slice() {
            &[
                Value::Text("storage"),
                Value::Global(class),
                Value::Text(key),
                Value::Text(_),
                numbers,
            ]
            | &[
                Value::Text("storage"),
                Value::Global(class),
                Value::Text(key),
                Value::Text(_),
                numbers,
                Value::None,
            ] => {
                let dtype = match class {
                    Global::Storage(dtype) => Some(Some(dtype)),
                    Global::UntypedStorage => Some(None),
                    _ => None,
                };
                dtype.zip(natural(numbers)).map(|(dtype, numbers)| Storage { key, dtype, numbers })
            }
            _ => None,
        };
        let storage = storage.ok_or_else(|| {
            let found = parts.iter().map(|&part| words(&self.objects, part));
            let found = format!("({})", found.collect::<Vec<_>>().join(", "));
            Fault::new("what lies outside of the pickle", "a whole storage", shortened(&found))
        })?;
        self.push_object(Object::Storage(storage))
    }

    fn object(&self, value: Value<'p>) -> Option<&Object<'p>> {
        if let Value::Object(index) = value { self.objects.get(index) } else { None }
    }

    fn object_mut(&mut self, value: Value<'p>) -> Option<&mut Object<'p>> {
        if let Value::Object(index) = value { self.objects.get_mut(index) } else { None }
    }

    fn unfit(&self, what: &str, expected: &str, found: Value<'p>) -> Fault {
        Fault::new(what, expected, words(&self.objects, found))
    }
}

/// The number of a length, an extent or an offset.
fn natural(value: Value<'_>) -> Option<usize> {
    if let Value::Integer(number) = value { usize::try_from(number).ok() } else { None }
}
