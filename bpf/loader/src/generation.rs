//! One complete set of pinned maps and programs.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::{Program, ProgramInfo};
use aya::{EbpfLoader, Pod};
use storage_schema::map::{self, Capacities, Control, TcpLayout};

use crate::error::LoadError;
use crate::hook;
use crate::{OBJECT, sockets};

/// Maps of a generation, as they are pinned. The socket storage is not among them: it outlives generations.
const MAPS: [&str; 7] = [
    map::name::CONTROL,
    map::name::FRONTEND_INDEX,
    map::name::FRONTENDS,
    map::name::SERVICES,
    map::name::ENDPOINTS,
    map::name::BACKENDS,
    map::name::NODE,
];

/// A generation's place among the pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    number: u64,
    directory: PathBuf,
}

/// `Control` as aya wants it. SAFETY: plain data without padding, which the ABI asserts.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct ControlEntry(Control);
unsafe impl Pod for ControlEntry {}

/// [`TcpLayout`] as aya wants it. SAFETY: as above.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct TcpLayoutEntry(TcpLayout);
unsafe impl Pod for TcpLayoutEntry {}

impl Generation {
    pub(crate) fn at(pin_root: &Path, number: u64) -> Self {
        Self { number, directory: pin_root.join(format!("gen-{number}")) }
    }

    /// All generations under a pin root, complete or not, oldest first.
    pub(crate) fn list(pin_root: &Path) -> Result<Vec<Self>, LoadError> {
        let failed = || LoadError::io("list", pin_root);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(pin_root).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            if let Some(number) = name.to_str().and_then(|name| name.strip_prefix("gen-")?.parse().ok()) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|number| Self::at(pin_root, number)).collect())
    }

    /// Creates the maps and loads the programs, and pins both. The maps are empty: not complete.
    pub(crate) fn create(self, flow: &[(&str, PathBuf)], capacities: &Capacities) -> Result<Self, LoadError> {
        fail::fail_point!("loader.before_create");
        for folder in [self.directory.clone(), self.maps(), self.programs()] {
            fs::create_dir(&folder).map_err(LoadError::io("create", folder.clone()))?;
        }
        let layout = TcpLayoutEntry(sockets::tcp_layout()?);
        let mut settings = EbpfLoader::new();
        settings
            .override_global("TCP_LAYOUT", &layout, true)
            .map_max_entries(map::name::FRONTEND_INDEX, capacities.frontend_cells())
            .map_max_entries(map::name::FRONTENDS, capacities.frontend_cells())
            .map_max_entries(map::name::SERVICES, capacities.service_cells())
            .map_max_entries(map::name::ENDPOINTS, capacities.endpoint_slots() / 2)
            .map_max_entries(map::name::BACKENDS, capacities.backend_cells());
        for (name, pin) in flow {
            settings.map_pin_path(name, pin);
        }
        let mut object = settings.load(OBJECT).map_err(LoadError::object)?;
        for name in MAPS {
            let path = self.map(name);
            object
                .map(name)
                .and_then(map_data)
                .ok_or(LoadError::Incomplete { what: name })?
                .pin(&path)
                .map_err(LoadError::pin(path))?;
        }
        fail::fail_point!("loader.before_pin_programs");
        for name in hook::programs() {
            let program = object.program_mut(name).ok_or(LoadError::Incomplete { what: name })?;
            let loaded = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::SockOps(program) => program.load(),
                Program::SkMsg(program) => program.load(),
                _ => return Err(LoadError::Incomplete { what: name }),
            };
            loaded.map_err(LoadError::program(name))?;
            let path = self.program(name);
            program.pin(&path).map_err(LoadError::pin(path))?;
        }
        fail::fail_point!("loader.after_create");
        Ok(self)
    }

    /// Its number: higher is newer.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// How many entries are admitted to its tables.
    pub fn capacities(&self) -> Result<Capacities, LoadError> {
        let entries =
            |name: &str| MapInfo::from_pin(self.map(name)).map(|info| info.max_entries()).map_err(LoadError::map(name));
        Ok(Capacities {
            frontends: entries(map::name::FRONTENDS)? / 2,
            services: entries(map::name::SERVICES)? / 2,
            backends: entries(map::name::BACKENDS)? / 2,
            endpoints: entries(map::name::ENDPOINTS)? / 2,
        })
    }

    /// Its `control` entry. `None` if there is none of the size that this build knows: another ABI.
    pub fn control(&self) -> Result<Option<Control>, LoadError> {
        let map = MapData::from_pin(self.map(map::name::CONTROL)).map_err(LoadError::map(map::name::CONTROL))?;
        let Ok(array) = Array::<_, ControlEntry>::try_from(Map::Array(map)) else { return Ok(None) };
        let entry = array.get(&0, 0).map_err(LoadError::map(map::name::CONTROL))?;
        Ok(Some(entry.0))
    }

    /// The kernel's numbers of its maps and programs, by the path of their pins: another number is another object.
    pub(crate) fn objects(&self) -> BTreeMap<PathBuf, Option<u32>> {
        let maps = MAPS.iter().map(|name| self.map(name)).map(|pin| {
            let id = MapInfo::from_pin(&pin).ok().map(|info| info.id());
            (pin, id)
        });
        let programs = hook::programs().map(|name| self.program(name)).map(|pin| {
            let id = ProgramInfo::from_pin(&pin).ok().map(|info| info.id());
            (pin, id)
        });
        maps.chain(programs).collect()
    }

    /// Whether it was filled: an incomplete one was never attached.
    pub fn is_complete(&self) -> bool {
        // Whatever cannot be read was not finished, or was made by another ABI: either way it is not ours to go on with.
        matches!(self.control(), Ok(Some(control)) if control.magic == Control::MAGIC)
    }

    /// The kernel's numbers of the maps that its programs use.
    pub(crate) fn used_maps(&self) -> HashSet<u32> {
        let maps_of = |name| ProgramInfo::from_pin(self.program(name)).ok()?.map_ids().ok()?;
        hook::programs().filter_map(maps_of).flatten().collect()
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Removes its pins. What is still attached or mapped lives until it is not.
    pub fn discard(&self) -> Result<(), LoadError> {
        fail::fail_point!("loader.before_discard");
        fs::remove_dir_all(&self.directory).map_err(LoadError::io("remove", self.directory.clone()))?;
        fail::fail_point!("loader.after_discard");
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) => Some(data),
        _ => None,
    }
}
