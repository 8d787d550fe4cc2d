//! Asking for GPUs answers on every machine, also where there is no driver.

use vecmill_backend_cuda::{Gpu, Unavailable, devices, libraries};

#[test]
fn devices_are_listed_or_it_is_said_why_not() {
    match devices() {
        Ok(devices) => {
            for (ordinal, device) in devices.iter().enumerate() {
                assert_eq!(device.ordinal, ordinal);
                assert!(!device.name.is_empty());
                assert_eq!(device.uuid.len(), 36, "{}", device.uuid);
                assert!(device.total_memory > 0);
                assert_eq!(device.free_memory, None, "nothing was opened to ask");
            }
        }
        Err(Unavailable::NoLibrary { looked_for }) => {
            assert!(looked_for.iter().any(|name| name.contains("cuda")), "{looked_for:?}");
            let message = Unavailable::NoLibrary { looked_for }.to_string();
            assert!(message.starts_with("no NVIDIA driver was found"), "{message}");
        }
        Err(reason) => assert!(reason.to_string().contains("NVIDIA driver"), "{reason}"),
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    for ordinal in [1000, usize::MAX] {
        let error = Gpu::open(ordinal).unwrap_err();
        if let Unavailable::NoDevice { ordinal: asked, count } = error {
            assert_eq!(asked, ordinal);
            assert!(count < 1000);
        }
    }
}

#[test]
fn libraries_are_there_or_it_is_said_what_to_install() {
    for (library, found) in libraries() {
        match found {
            Ok(found) => assert!(found.version >= (12, 0), "{found:?}"),
            Err(missing) => {
                let message = missing.to_string();
                assert!(message.starts_with(library.name()), "{message}");
                assert!(message.contains("pip install"), "{message}");
            }
        }
    }
}
