//! `smalti devices`.

use smalti::Device;

use super::args::Devices;

/// Prints every device, and a line for each backend that has none.
pub fn run(options: &Devices) {
    let list = Device::list();
    let absent = Device::absent();
    if options.json {
        let devices: Vec<_> = list
            .iter()
            .map(|info| {
                serde_json::json!({
                    "id": info.id, "backend": info.backend.name(), "name": info.name,
                    "software": info.software, "features": info.features,
                })
            })
            .collect();
        let absent: Vec<_> = absent
            .iter()
            .map(|(backend, reason)| serde_json::json!({"backend": backend.name(), "reason": reason}))
            .collect();
        println!("{}", serde_json::json!({"devices": devices, "absent": absent}));
        return;
    }
    for info in &list {
        let software = if info.software { " software" } else { "" };
        println!("{:<10} {}{software} [{}]", info.id, info.name, info.features.join(", "));
    }
    for (backend, reason) in absent {
        println!("{:<10} absent: {reason}", backend.name());
    }
}
