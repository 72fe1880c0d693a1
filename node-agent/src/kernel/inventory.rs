//! What there is in the kernel, as it says itself: programs and maps with their sizes.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::MapInfo;

use super::{Kernel, KernelError, object};

/// What the verifier and the JIT made of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSize {
    pub name: String,
    /// Instructions that the verifier walked, all paths added up; its limit is a million.
    pub verified_instructions: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Names of the maps that it uses.
    pub maps: BTreeSet<String>,
}

/// A map and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSize {
    pub name: String,
    /// Bytes of a key; 0: it has none.
    pub key: u32,
    /// Bytes of a value; of a ring 0.
    pub value: u32,
    /// Entries; of a ring its bytes.
    pub limit: u32,
    /// Whether it outlives the agent.
    pub is_pinned: bool,
}

impl Kernel {
    /// How much of the verifier's and the machine's means each program takes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn program_sizes(&self) -> Result<Vec<ProgramSize>, KernelError> {
        let known = self.maps()?;
        let mut sizes = Vec::new();
        for (name, program) in self.programs.programs() {
            let error = |source| KernelError::program(name, source);
            let info = program.info().map_err(error)?;
            let ids = info.map_ids().map_err(error)?.unwrap_or_default();
            sizes.push(ProgramSize {
                name: name.to_owned(),
                verified_instructions: info.verified_instruction_count().unwrap_or(0),
                machine_code: info.size_jitted(),
                maps: ids.iter().filter_map(|id| Some(known.get(id)?.name.clone())).collect(),
            });
        }
        sizes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sizes)
    }

    /// Every map: those that are pinned, and those that only programs hold.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn map_sizes(&self) -> Result<Vec<MapSize>, KernelError> {
        let mut sizes: Vec<MapSize> = self.maps()?.into_values().collect();
        sizes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sizes)
    }

    /// By number.
    fn maps(&self) -> Result<BTreeMap<u32, MapSize>, KernelError> {
        let mut maps = BTreeMap::new();
        for name in object::MAPS {
            let info =
                MapInfo::from_pin(self.pins.map(name)).map_err(|source| KernelError::Map { name, source })?;
            maps.insert(info.id(), size(name, &info, true));
        }
        for (name, program) in self.programs.programs() {
            let error = |source| KernelError::program(name, source);
            for id in program.info().map_err(error)?.map_ids().map_err(error)?.unwrap_or_default() {
                if maps.contains_key(&id) {
                    continue;
                }
                let info = MapInfo::from_id(id)
                    .map_err(|source| KernelError::Map { name: "of a program", source })?;
                let name = info.name_as_str().unwrap_or_default().to_owned();
                // The compiler's constants.
                if name.starts_with('.') {
                    continue;
                }
                maps.insert(id, size(&name, &info, false));
            }
        }
        Ok(maps)
    }
}

fn size(name: &str, info: &MapInfo, is_pinned: bool) -> MapSize {
    let (key, value, limit) = (info.key_size(), info.value_size(), info.max_entries());
    MapSize { name: name.to_owned(), key, value, limit, is_pinned }
}
