use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::places::{FOLDERS_VARIABLE, Machine, folders};
use super::{Missing, NvidiaLibrary, Opened, open_on};

/// A machine whose root is a folder, with these folders and environment variables.
fn on_machine<T>(
    folders: &[&str],
    variables: &[(&str, &str)],
    test: impl FnOnce(&Machine<'_>, &Path) -> T,
) -> T {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for folder in folders {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let variables: HashMap<_, OsString> =
        variables.iter().map(|(name, value)| (*name, root.join(value).into())).collect();
    let variable = |name: &str| variables.get(name).cloned();
    let home = Some(root.join("home/ada"));
    test(&Machine { variable: &variable, home, root: root.to_owned() }, root)
}

fn usual(machine: &Machine<'_>, root: &Path, library: NvidiaLibrary) -> Vec<String> {
    let usual = folders(machine, library).usual;
    let below = usual.iter().map(|path| path.strip_prefix(root).unwrap());
    below.map(|path| path.to_str().unwrap().to_owned()).collect()
}

#[test]
fn folders_that_exist_are_looked_in_from_the_nearest_to_the_farthest() {
    let there = [
        "usr/local/lib/python3.12/dist-packages/nvidia/cu13/lib",
        "usr/lib/python3/dist-packages/nvidia/cuda_nvrtc/lib",
        "home/ada/.local/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib",
        "environment/lib/python3.11/site-packages/nvidia/cublas/lib",
        "environment/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib",
        "usr/local/cuda-12.4/lib64",
        "usr/local/cuda-13.0/lib64",
        "usr/local/cuda/lib64",
        "toolkit/lib64",
    ];
    let variables = [("CUDA_PATH", "toolkit"), ("VIRTUAL_ENV", "environment")];
    on_machine(&there, &variables, |machine, root| {
        let expected = [
            "toolkit/lib64",
            "usr/local/cuda/lib64",
            "usr/local/cuda-13.0/lib64",
            "usr/local/cuda-12.4/lib64",
            "environment/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib",
            "home/ada/.local/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib",
            "usr/local/lib/python3.12/dist-packages/nvidia/cu13/lib",
            "usr/lib/python3/dist-packages/nvidia/cuda_nvrtc/lib",
        ];
        assert_eq!(usual(machine, root, NvidiaLibrary::Nvrtc), expected);
        let products = usual(machine, root, NvidiaLibrary::CublasLt);
        assert!(products.contains(&there[3].to_owned()), "{products:?}");
        assert!(!products.contains(&there[4].to_owned()), "{products:?}");
    });
}

#[test]
fn a_folder_is_looked_in_once() {
    let variables = [("CUDA_HOME", "usr/local/cuda"), ("CUDA_PATH", "usr/local/cuda")];
    on_machine(&["usr/local/cuda/lib64"], &variables, |machine, root| {
        assert_eq!(usual(machine, root, NvidiaLibrary::CublasLt), ["usr/local/cuda/lib64"]);
    });
}

#[test]
fn a_driver_gets_libraries_of_its_own_version_or_older() {
    let names = |driver| NvidiaLibrary::Nvrtc.names(driver);
    assert!(names((13, 1))[0].contains("13") && names((13, 1))[1].contains("12"));
    assert!(names((12, 4)).iter().all(|name| !name.contains("13")));
    assert!(names((12, 4))[0].contains("12"));
}

/// Opens a library, of which no file has the function that is needed.
fn refused(machine: &Machine<'_>) -> String {
    let opened = open_on(machine, NvidiaLibrary::Nvrtc, (13, 0), |_| Err::<(), _>("nvrtcVersion"));
    opened.unwrap_err().to_string()
}

#[test]
fn a_file_that_is_no_library_is_named_with_what_the_loader_says() {
    on_machine(&["toolkit/lib64"], &[(FOLDERS_VARIABLE, "toolkit/lib64")], |machine, root| {
        let file = root.join("toolkit/lib64").join(&NvidiaLibrary::Nvrtc.names((13, 0))[0]);
        std::fs::write(&file, "not a library").unwrap();
        let message = refused(machine);
        let expected = format!("; {} can't be used: ", file.display());
        assert!(message.contains(&expected), "{message}");
    });
}

#[test]
#[cfg(unix)]
fn the_message_says_what_was_tried_and_what_to_do() {
    let missing = Missing {
        library: NvidiaLibrary::Nvrtc,
        driver: (13, 0),
        names: NvidiaLibrary::Nvrtc.names((13, 0)),
        folders: vec![PathBuf::from("/usr/local/cuda/lib64"), PathBuf::from("/opt/cuda/lib64")],
        unusable: Vec::new(),
    };
    assert_eq!(
        missing.to_string(),
        "NVRTC (the compiler of GPU kernels) was not found: looked for libnvrtc.so.13, \
         libnvrtc.so.12 or libnvrtc.so where the loader looks and in /usr/local/cuda/lib64, \
         /opt/cuda/lib64; install it (`pip install nvidia-cuda-nvrtc nvidia-cublas`, or the \
         runtime packages of CUDA 13), or name its folder in VECMILL_CUDA_LIBRARIES"
    );
    let old = Missing { driver: (12, 2), folders: Vec::new(), ..missing }.to_string();
    assert!(old.contains("where the loader looks; install it"), "{old}");
    assert!(old.contains("nvidia-cuda-nvrtc-cu12 nvidia-cublas-cu12"), "{old}");
}

#[test]
#[ignore = "needs NVRTC"]
fn a_library_without_the_functions_is_passed_over() {
    let machine = Machine::this();
    let Opened { file, .. } = open_on(&machine, NvidiaLibrary::Nvrtc, (13, 0), |_| Ok(())).unwrap();
    let message = refused(&machine);
    if file.is_absolute() {
        let expected = format!("{} can't be used: it has no function nvrtcVersion", file.display());
        assert!(message.contains(&expected), "{message}");
    }
}
