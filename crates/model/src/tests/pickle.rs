//! Pickled weights: what torch has written, told by torch, and what nobody honest writes.

use std::io::Write as _;

use rawzip::ZipArchiveWriter;

use super::*;
use crate::Weights;

fn pickles() -> PathBuf {
    test_data().join("../pickles")
}

/// A zip archive of these entries, stored.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for (name, contents) in entries {
        let (mut entry, config) = archive.new_file(*name).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        writer.write_all(contents).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap()
}

/// What torch 1.6 would write of this pickle and a storage of 24 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[("archive/data.pkl", pickle), ("archive/data/0", &[0; 24]), ("archive/version", b"3\n")])
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
}

fn number(number: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &number.to_le_bytes()].concat()
}

fn tuple(parts: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &parts.concat()[..], b"t"].concat()
}

fn numbers(numbers: &[i64]) -> Vec<u8> {
    tuple(&numbers.iter().copied().map(number).collect::<Vec<_>>())
}

fn storage(class: &str, key: &str, count: i64) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n").into_bytes();
    let parts = [text("storage"), class, text(key), text("cpu"), number(count)];
    [&tuple(&parts)[..], b"Q"].concat()
}

/// A tensor of the storage of six numbers.
fn tensor(offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    tensor_of(storage("FloatStorage", "0", 6), offset, shape, strides)
}

fn tensor_of(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let arguments = tuple(&[
        storage,
        number(offset),
        numbers(shape),
        numbers(strides),
        b"\x89".to_vec(),
        hooks,
    ]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments[..], b"R"].concat()
}

/// A pickle of a table.
fn table(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let members: Vec<u8> =
        members.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(", &members[..], b"u."].concat()
}

fn opened(file: &[u8]) -> Result<Weights, ModelError> {
    let folder = TempDir::new().unwrap();
    write(&folder, "pytorch_model.bin", file);
    Weights::open(folder.path())
}

/// The words of the refusal of this file.
fn refusal(file: &[u8]) -> String {
    match opened(file) {
        Err(error @ ModelError::Pickle { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The words of the refusal of an archive with this pickle.
fn refused(pickle: &[u8]) -> String {
    refusal(&archive(pickle))
}

#[test]
fn what_torch_has_written_is_read_as_torch_says() {
    let expected: Value =
        serde_json::from_slice(&fs::read(pickles().join("expected.json")).unwrap()).unwrap();
    let mut compared = 0;
    for (file, tensors) in expected.as_object().unwrap() {
        let weights = Weights::open_file(&pickles().join(file)).unwrap();
        let tensors = tensors.as_object().unwrap();
        assert_eq!(weights.names().count(), tensors.len(), "{file}");
        for (name, facts) in tensors {
            let shape = facts["shape"].as_array().unwrap();
            let shape: Vec<usize> =
                shape.iter().map(|extent| extent.as_u64().unwrap() as usize).collect();
            let tensor = weights.tensor(name, &shape);
            if !["float32", "float16", "bfloat16"].contains(&facts["dtype"].as_str().unwrap()) {
                assert!(matches!(tensor, Err(ModelError::NumberFormat { .. })), "{file}: {name}");
                continue;
            }
            let values = facts["values"].as_array().unwrap();
            let values: Vec<f32> =
                values.iter().map(|value| value.as_f64().unwrap() as f32).collect();
            assert_eq!(*tensor.unwrap().to_f32(), values, "{file}: {name}");
            compared += 1;
        }
    }
    assert!(compared > 30, "{compared}");
}

#[test]
fn numbers_that_lie_row_by_row_are_not_copied() {
    let weights = Weights::open_file(&pickles().join("table.bin")).unwrap();
    let tensor = |name, shape: &[usize]| weights.tensor(name, shape).unwrap();
    let at = |tensor: &TensorView| tensor.bytes().as_ptr();
    let (whole, tied, part) =
        (tensor("whole", &[4, 6]), tensor("tied", &[4, 6]), tensor("part", &[2, 6]));
    assert_eq!(at(&whole), at(&tied));
    assert_eq!(at(&whole).wrapping_add(6 * 4), at(&part));
    assert!(whole.lies_as_f32(), "torch aligns storages");
    assert_ne!(at(&tensor("transposed", &[6, 4])), at(&whole));
}

#[test]
fn shards_and_conversion_go_the_same_way() {
    let shards = Weights::open(&pickles().join("shards")).unwrap();
    let whole = Weights::open_file(&pickles().join("protocol-2.pt")).unwrap();
    for (name, shape) in [("weight", &[2, 3][..]), ("bias", &[2])] {
        let [shard, whole] = [&shards, &whole].map(|weights| weights.tensor(name, shape).unwrap());
        assert_eq!(shard.to_f32(), whole.to_f32());
    }
    let table = Weights::open_file(&pickles().join("table.bin")).unwrap();
    let folder = TempDir::new().unwrap();
    let mut file = Vec::new();
    table.write_as(DType::F32, &mut file, &|_| {}).unwrap();
    write(&folder, "model.safetensors", &file);
    let converted = Weights::open(folder.path()).unwrap();
    assert!(converted.names().eq(table.names()));
    for (name, shape) in
        [("transposed", &[6, 4][..]), ("half_permuted", &[2, 3, 2]), ("empty", &[0, 3])]
    {
        let [before, after] =
            [&table, &converted].map(|weights| weights.tensor(name, shape).unwrap());
        assert_eq!(before.to_f32(), after.to_f32(), "{name}");
    }
}

#[test]
fn safetensors_are_preferred() {
    let folder = folder();
    write(&folder, "pytorch_model.bin", b"\x80\x02cposix\nsystem\n.");
    Model::open(folder.path()).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(error(&folder), ModelError::Pickle { .. }));
}

#[test]
fn what_would_run_code_is_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("__builtin__", "getattr"),
        ("subprocess", "Popen"),
        ("torch.hub", "load"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch", "ComplexFloatStorage"),
        ("collections", "defaultdict"),
        ("collections.OrderedDict", "__reduce__"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("transformers.models.bert.modeling_bert", "BertModel"),
        ("", ""),
    ] {
        let by_lines = format!("\u{1}c{module}\n{name}\n").into_bytes();
        let by_stack = [text(module), text(name), b"\x93".to_vec()].concat();
        let argument = tuple(&[text("touch /tmp/owned")]);
        for global in [&by_lines[1..], &by_stack] {
            let pickle = [b"\x80\x02", global, &argument[..], b"R."].concat();
            let message = refused(&pickle);
            assert!(message.contains(&format!("'{module}.{name}'")), "{message}");
            // As the first of the pickles of the older form, too.
            assert!(matches!(opened(&pickle), Err(ModelError::Pickle { .. })));
        }
    }
}

#[test]
fn other_instructions_are_refused_by_name() {
    for (op, name) in [
        (b'i', "INST"),
        (b'o', "OBJ"),
        (b'P', "PERSID"),
        (0x81, "NEWOBJ"),
        (0x92, "NEWOBJ_EX"),
        (0x82, "EXT1"),
        (0x84, "EXT4"),
        (b'B', "BINBYTES"),
        (0x96, "BYTEARRAY8"),
        (0xff, "0xff"),
        (0, "0x00"),
    ] {
        let message = refused(&[0x80, 2, b'}', op, b'.']);
        assert!(message.contains(name) && message.contains("at byte 3"), "{message}");
    }
    assert!(refused(b"\x80\x06.").contains("protocol"));
}

#[test]
fn machines_out_of_step_are_refused() {
    for (pickle, what) in [
        (&b""[..], "is the file cut off?"),
        (b"\x80\x02", "is the file cut off?"),
        (b".", "stack"),
        (b"(.", "stack"),
        (b"N(0.", "stack"),
        (b"t.", "without a mark"),
        (b"h\x07.", "number 7"),
        (b"X\xff\xff\xff\xffab", "is the file cut off?"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab", "is the file cut off?"),
        (b"\x8b\xff\xff\xff\xffab", "is the file cut off?"),
        (b"X\x01\0\0\0\xff.", "UTF-8"),
        (b"cposix", "is the file cut off?"),
        (b"}(Nu.", "even"),
        (b"](NNu.", "a table"),
        (b"}Na.", "a list"),
        (b"N}b.", "attributes"),
        (b"N)R.", "what is called"),
        (b"ctorch\nFloatStorage\n)R.", "what is called"),
        (b"ccollections\nOrderedDict\nNR.", "a tuple"),
        (b"ccollections\nOrderedDict\nN\x85R.", "OrderedDict is called with"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "_rebuild_tensor is called with"),
        (b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R.", "_rebuild_parameter is called with"),
        (b"NQ.", "a whole storage"),
        (b")Q.", "a whole storage"),
        (b"NN\x93.", "text"),
        (b"K\x01.", "a table"),
        (b"}K\x01K\x01s.", "a table"),
        (b"}X\x01\0\0\0aK\x01s.", "the tensor 'a'"),
        (b"}X\x01\0\0\0a}s.", "but is a table"),
    ] {
        let message = refused(pickle);
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn pickles_that_grow_are_stopped() {
    let many = |op: &[u8], count: usize| [b"\x80\x02N", &op.repeat(count)[..], b"."].concat();
    for (op, what) in [
        (&b"N"[..], "the stack"),
        (b"2", "the stack"),
        (b"(", "the stack"),
        (b"}", "the stack"),
        (b"}0", "objects"),
        (b"(t0", "objects"),
        (b"\x94", "keeps"),
        (b"N0", "instructions"),
    ] {
        let count = if op == b"N0" { 2_200_000 } else { 1_100_000 };
        let message = refused(&many(op, count));
        assert!(message.contains(what), "{message}");
    }
    let message = refused(&many(b"N", (8 << 20) + 1));
    assert!(message.contains("data.pkl"), "{message}");
    // What is kept under large numbers takes no more than under small ones.
    opened(&archive(b"\x80\x02}r\xff\xff\xff\xff.")).unwrap();
}

#[test]
fn what_contains_itself_costs_nothing() {
    // A tuple of twice a tuple of twice …, a table in itself, and a list in itself.
    let doubled = b"\x86q\x00h\x00".repeat(10_000);
    let pickle = [b"\x80\x02NN", &doubled[..], b"0."].concat();
    assert!(refused(&pickle).contains("a tuple"));
    assert!(
        refused(b"}q\x00X\x01\0\0\0ah\x00s.").contains("'a' should be a tensor, but is a table")
    );
    assert!(refused(b"]q\x00h\x00a.").contains("a list"));
}

#[test]
fn tensors_lie_within_their_storages() {
    let one = |tensor: Vec<u8>| archive(&table(&[("w", tensor)]));
    for (offset, shape, strides) in [
        (0, &[6][..], &[1][..]),
        (5, &[1], &[i64::MAX]),
        (0, &[2, 3], &[3, 1]),
        (0, &[3, 2], &[1, 3]),
        (1, &[2, 2], &[3, 1]),
        (0, &[0, 7], &[i64::MAX, 1]),
        (6, &[0], &[1]),
        (3, &[], &[]),
    ] {
        let weights = opened(&one(tensor(offset, shape, strides))).unwrap();
        let shape: Vec<usize> =
            shape.iter().map(|&extent| usize::try_from(extent).unwrap()).collect();
        let elements = shape.iter().product::<usize>();
        assert_eq!(weights.tensor("w", &shape).unwrap().to_f32().len(), elements);
    }
    for (offset, shape, strides) in [
        (1, &[6][..], &[1][..]),
        (7, &[0], &[1]),
        (6, &[], &[]),
        (0, &[4, 2], &[2, 1]),
        (0, &[2], &[6]),
        (0, &[2], &[i64::MAX]),
        (i64::MAX, &[1], &[1]),
        (0, &[i64::MAX, i64::MAX], &[1, 1]),
        (0, &[2, 2, 2], &[i64::MAX, i64::MAX, i64::MAX]),
        // More numbers than there are.
        (0, &[1 << 40], &[0]),
        (0, &[2, 6], &[0, 1]),
        (0, &[3, 4], &[1, 1]),
    ] {
        let message = refusal(&one(tensor(offset, shape, strides)));
        assert!(message.contains("the tensor 'w' should be within the 6 numbers"), "{message}");
    }
    for (shape, strides) in
        [(&[-1][..], &[1][..]), (&[1], &[-1]), (&[1, 1], &[1]), (&[1; 17], &[1; 17])]
    {
        let message = refusal(&one(tensor(0, shape, strides)));
        assert!(message.contains("_rebuild_tensor is called with"), "{message}");
    }
    for (class, key, count, what) in [
        ("FloatStorage", "0", 5, "of 5 numbers, but is of 24 bytes"),
        ("FloatStorage", "0", i64::MAX, "of 24 bytes"),
        ("DoubleStorage", "0", 6, "of 24 bytes"),
        ("FloatStorage", "1", 6, "missing"),
        ("FloatStorage", "../version", 6, "missing"),
        ("FloatStorage", "", 6, "missing"),
    ] {
        let message = refusal(&one(tensor_of(storage(class, key, count), 0, &[1], &[1])));
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn copies_take_no_more_than_the_file() {
    let transposed = tensor(0, &[3, 2], &[1, 3]);
    let names: Vec<String> = (0..100).map(|index| index.to_string()).collect();
    let of = |count: usize| {
        // The first makes it, the others take it again.
        let again = b"h\x00".to_vec();
        let members: Vec<_> = names
            .iter()
            .take(count)
            .enumerate()
            .map(|(index, name)| {
                let first = [&transposed[..], b"q\x00"].concat();
                (name.as_str(), if index == 0 { first } else { again.clone() })
            })
            .collect();
        archive(&table(&members))
    };
    opened(&of(10)).unwrap();
    let message = refusal(&of(100));
    assert!(message.contains("row by row"), "{message}");
}

#[test]
fn names_are_there_once() {
    let twice = [("w", tensor(0, &[1], &[1])), ("w", tensor(1, &[1], &[1]))];
    assert!(refusal(&archive(&table(&twice))).contains("'w' should be there once"));
}

#[test]
fn archives_that_lie_are_refused() {
    let pickle = table(&[("w", tensor(0, &[6], &[1]))]);
    let with = |others: &[(&str, &[u8])]| {
        let entries: [(&str, &[u8]); 2] = [("m/data.pkl", &pickle), ("m/data/0", &[0; 24])];
        zip(&[&entries, others].concat())
    };
    opened(&with(&[("m/byteorder", b"little")])).unwrap();
    assert!(refusal(&with(&[("m/byteorder", b"big")])).contains("byte order"));
    assert!(refusal(&with(&[("m/constants.pkl", b"")])).contains("TorchScript"));
    assert!(refusal(&with(&[("m/data/0", &[0; 24])])).contains("there twice"));
    assert!(refusal(&zip(&[("m/other", b"")])).contains("without 'data.pkl'"));
    assert!(refusal(&zip(&[("m/data.pkl", &pickle), ("n/data/0", &[0; 24])])).contains("missing"));

    let good = with(&[]);
    let changed = |signature: &[u8], which: usize, offset: usize, byte: u8| {
        let mut file = good.clone();
        let places = good.windows(4).enumerate().filter(|(_, at)| *at == signature);
        let (at, _) = places.collect::<Vec<_>>()[which];
        file[at + offset] = byte;
        refusal(&file)
    };
    let (local, central) = (b"PK\x03\x04", b"PK\x01\x02");
    assert!(changed(central, 1, 10, 8).contains("DEFLATE"));
    assert!(changed(central, 1, 8, 1).contains("encrypted"));
    assert!(changed(local, 1, 8, 8).contains("the same in the directory"));
    assert!(changed(local, 1, 30, b'x').contains("the same in the directory"));
    assert!(changed(central, 1, 20, 23).contains("the same in the directory"), "packed size");
    assert!(changed(central, 1, 24, 23).contains("the same in the directory"), "size");
    assert!(changed(central, 1, 22, 1).contains("within the file"), "64 KiB more");
    assert!(changed(central, 1, 42, 0).contains("the same in the directory"), "the first's place");
    assert!(changed(central, 0, 0, 0).contains("broken"));
}

#[test]
fn overlapping_entries_are_refused() {
    // An entry whose data holds another one, which the directory has at that place.
    let pickle = table(&[("w", tensor(0, &[6], &[1]))]);
    let inner = zip(&[("m/data/0", &[0; 24])]);
    let head = inner.windows(4).position(|at| at == b"PK\x01\x02").unwrap();
    let mut file =
        zip(&[("m/data.pkl", &pickle), ("m/hull", &inner[..head]), ("m/data/0", &[0; 24])]);
    let places = |file: &[u8], what: &[u8]| {
        let places = file.windows(what.len()).enumerate();
        places.filter(|(_, at)| *at == what).map(|(at, _)| at).collect::<Vec<_>>()
    };
    let locals = places(&file, b"PK\x03\x04");
    let record = places(&file, b"PK\x01\x02")[2];
    file[record + 42..record + 46]
        .copy_from_slice(&u32::try_from(locals[2]).unwrap().to_le_bytes());
    let message = refusal(&file);
    assert!(message.contains("'m/hull' should be beside all others"), "{message}");
}

#[test]
fn files_that_are_cut_off_are_refused_at_every_length() {
    for name in ["table.bin", "before-1.6.bin", "protocol-5.pt"] {
        let whole = fs::read(pickles().join(name)).unwrap();
        for length in (0..whole.len()).step_by(3) {
            assert!(opened(&whole[..length]).is_err(), "{name} of {length} bytes");
        }
    }
}

#[test]
fn older_forms_are_told_apart() {
    let file = fs::read(pickles().join("before-1.6.bin")).unwrap();
    let mut big = file.clone();
    let order = big.windows(14).position(|at| at.starts_with(b"little_endian")).unwrap() + 13;
    let value = big[order..].iter().position(|&byte| byte == 0x88).unwrap() + order;
    big[value] = 0x89;
    assert!(refusal(&big).contains("byte order"));

    let mut other = file;
    other[17..20].copy_from_slice(b"M\xea\x03");
    assert!(refusal(&other).contains("version should be 1001, but is 1002"));

    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refusal(&tar).contains("tar archive"));
    assert!(refusal(b"nothing of the kind").contains("something else"));

    let view = [
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        number(6),
        tuple(&[text("1"), number(0), number(3)]),
    ];
    let view = [&tuple(&view)[..], b"Q"].concat();
    let message = refusal(&archive(&table(&[("w", tensor_of(view, 0, &[1], &[1]))])));
    assert!(message.contains("a whole storage"), "{message}");
    for (contents, words) in
        [(&b"version https://git-lfs"[..], "LFS"), (b"", "empty"), (b"<html>", "web page")]
    {
        let message = opened(contents).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is changed in a file that torch has written, it is refused or read within bounds.
    #[test]
    fn changed_files_are_read_or_refused(
        which in 0..4usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let name = ["table.bin", "before-1.6.bin", "protocol-2.pt", "newer.bin"][which];
        let mut file = fs::read(pickles().join(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(weights) = opened(&file) {
            let written = weights.write_as(DType::F32, &mut std::io::sink(), &|_| {});
            prop_assert!(written.is_ok() || written.unwrap_err().to_string().contains("can't hold"));
        }
    }

    /// Every tensor that is accepted has as many numbers as it says, each from its own place.
    #[test]
    fn accepted_tensors_are_what_they_say(
        offset in 0..7i64,
        extents in prop::collection::vec((0..4i64, 0..7i64), 0..4),
    ) {
        let (shape, strides): (Vec<i64>, Vec<i64>) = extents.into_iter().unzip();
        let values: Vec<u8> = (0u8..6).flat_map(|value| f32::from(value).to_le_bytes()).collect();
        let pickle = table(&[("w", tensor(offset, &shape, &strides))]);
        let file = zip(&[("a/data.pkl", &pickle), ("a/data/0", &values)]);
        let last: i64 = shape.iter().zip(&strides).map(|(extent, stride)| (extent - 1) * stride).sum();
        let count: i64 = shape.iter().product();
        let lies_within = if count == 0 { offset <= 6 } else { offset + last < 6 };
        let Ok(weights) = opened(&file) else {
            prop_assert!(!lies_within || count > last + 1);
            return Ok(());
        };
        prop_assert!(lies_within);
        let extents: Vec<usize> = shape.iter().map(|&extent| usize::try_from(extent).unwrap()).collect();
        let tensor = weights.tensor("w", &extents).unwrap();
        let mut index = vec![0i64; shape.len()];
        for &found in tensor.to_f32().iter() {
            let at = offset + index.iter().zip(&strides).map(|(at, stride)| at * stride).sum::<i64>();
            prop_assert_eq!(found, at as f32);
            for (at, &extent) in index.iter_mut().zip(&shape).rev() {
                *at += 1;
                if *at < extent { break; }
                *at = 0;
            }
        }
        prop_assert_eq!(tensor.elements(), usize::try_from(count).unwrap());
    }
}
