//! What a power cut, a kill and a fault do to a simulated disk.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::fs::replace_file;

const SEEDS: std::ops::Range<u64> = 0..200;

fn path(path: &str) -> &Path {
    Path::new(path)
}

fn create(fs: &SimFs, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = fs.open(path(name), OpenMode::CreateNew, 0).unwrap();
    write(&*file, bytes, 0).unwrap();
    file
}

fn write(file: &dyn File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], offset)
}

/// A disk with the file `/f`, which is durable with `old`, open.
fn disk_with(old: &[u8]) -> (SimFs, Arc<dyn File>) {
    let fs = SimFs::new();
    fs.write_image(path("/f"), old).unwrap();
    let file = fs.open(path("/f"), OpenMode::Write, 0).unwrap();
    (fs, file)
}

/// The content of `/f` after the power cut of each seed.
fn outcomes(fs: &SimFs) -> Vec<Vec<u8>> {
    SEEDS.map(|seed| fs.crash(seed).read_image(path("/f")).unwrap()).collect()
}

/// All files and their bytes.
fn image(fs: &SimFs) -> Vec<(PathBuf, Vec<u8>)> {
    fs.paths().into_iter().map(|path| (path.clone(), fs.read_image(&path).unwrap())).collect()
}

fn kind<T: fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

#[track_caller]
fn assert_io_error<T: fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
}

mod bytes {
    use super::*;

    #[test]
    fn synced_bytes_survive_every_power_cut() {
        let (fs, file) = disk_with(b"");
        let content: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
        write(&*file, &content, 0).unwrap();
        file.sync_data().unwrap();
        write(&*file, &[9; 6_000], 20_000).unwrap();
        file.reserve(50_000).unwrap();
        for (seed, found) in SEEDS.zip(outcomes(&fs)) {
            assert_eq!(found[..20_000], content, "seed {seed}");
        }
    }

    #[test]
    fn an_unsynced_page_is_sometimes_lost_sometimes_torn_sometimes_kept() {
        let (fs, file) = disk_with(&[1; 4096]);
        write(&*file, &[2; 4096], 0).unwrap();
        let mut boundaries = BTreeSet::new();
        let (mut lost, mut kept) = (0, 0);
        for found in outcomes(&fs) {
            match found.windows(2).position(|pair| pair[0] != pair[1]) {
                None if found[0] == 1 => lost += 1,
                None => kept += 1,
                Some(last) => drop(boundaries.insert((found[0], last + 1))),
            }
        }
        assert!(lost > 20 && kept > 20, "{lost} lost, {kept} kept");
        assert!(boundaries.iter().all(|(_, at)| at % 512 == 0), "{boundaries:?}");
        assert_eq!(boundaries.len(), 14, "each of the 7 boundaries, from either side: {boundaries:?}");
    }

    #[test]
    fn pages_are_lost_independently_of_each_other() {
        let (fs, file) = disk_with(&[1; 3 * 4096]);
        write(&*file, &[2; 3 * 4096], 0).unwrap();
        let first_bytes = outcomes(&fs).into_iter().map(|found| [found[0], found[4096], found[8192]]);
        assert_eq!(first_bytes.collect::<BTreeSet<_>>().len(), 8);
    }

    #[test]
    fn a_page_that_was_not_written_since_the_sync_never_changes() {
        let (fs, file) = disk_with(&[1; 3 * 4096]);
        write(&*file, &[2; 10], 4096).unwrap();
        for found in outcomes(&fs) {
            assert_eq!((&found[..4096], &found[8192..]), (&[1; 4096][..], &[1; 4096][..]));
        }
    }

    #[test]
    fn an_unsynced_growth_is_lost_kept_or_part_way_and_may_show_zeros() {
        let (fs, file) = disk_with(&[1; 100]);
        write(&*file, &[2; 9_000], 100).unwrap();
        let found = outcomes(&fs);
        let lens: BTreeSet<_> = found.iter().map(Vec::len).collect();
        assert_eq!(lens, BTreeSet::from([100, 4096, 8192, 9_100]));
        assert!(found.iter().all(|bytes| bytes[..100] == [1; 100]));
        assert!(found.iter().flat_map(|bytes| &bytes[100..]).all(|byte| [0, 2].contains(byte)));
        assert!(found.iter().any(|bytes| bytes.len() == 9_100 && bytes[100..].iter().all(|&byte| byte == 0)));
        assert!(found.iter().any(|bytes| bytes.len() == 9_100 && bytes[100..].iter().all(|&byte| byte == 2)));
    }

    #[test]
    fn an_unsynced_cut_is_lost_or_kept_and_never_mixes_old_blocks_into_a_regrown_file() {
        let (fs, file) = disk_with(&[1; 12_288]);
        file.truncate(4_096).unwrap();
        write(&*file, &[2; 8_192], 4_096).unwrap();
        let found = outcomes(&fs);
        assert!(found.contains(&vec![1; 12_288]), "the cut was lost once");
        assert!(found.contains(&vec![1; 4_096]), "the cut was kept once, without what followed");
        for bytes in found {
            assert_eq!(bytes[..4096], [1; 4096]);
            let regrown: BTreeSet<_> = bytes[4096..].iter().collect();
            assert!(!(regrown.contains(&1) && regrown.len() > 1), "old and new blocks: {regrown:?}");
        }
    }

    #[test]
    fn a_lost_cut_may_have_cleared_the_end_of_its_last_page() {
        let (fs, file) = disk_with(&[1; 8_192]);
        file.truncate(512).unwrap();
        let lost: BTreeSet<_> = outcomes(&fs).into_iter().filter(|found| found.len() == 8_192).collect();
        let cleared = [vec![1; 512], vec![0; 3_584], vec![1; 4_096]].concat();
        assert!(lost.contains(&cleared) && lost.contains(&vec![1; 8_192]));
        assert!(lost.iter().all(|found| found[..512] == [1; 512] && found[4_096..] == [1; 4_096]));
    }

    #[test]
    fn one_sync_saves_a_cut_and_the_growth_after_it() {
        let (fs, file) = disk_with(&[1; 12_288]);
        file.truncate(5_000).unwrap();
        file.reserve(12_288).unwrap();
        file.sync_data().unwrap();
        let expected = [vec![1; 5_000], vec![0; 7_288]].concat();
        assert!(outcomes(&fs).iter().all(|found| *found == expected));
    }

    #[test]
    fn a_synced_cut_stays() {
        let (fs, file) = disk_with(&[1; 12_288]);
        file.truncate(5_000).unwrap();
        file.sync_data().unwrap();
        file.reserve(12_288).unwrap();
        for found in outcomes(&fs) {
            assert!(found.len() >= 5_000 && found[..5_000] == [1; 5_000]);
            assert!(found[5_000..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn the_image_after_a_power_cut_is_durable() {
        let (fs, file) = disk_with(&[1; 4096]);
        write(&*file, &[2; 8192], 0).unwrap();
        create(&fs, "/g", b"unsynced name");
        for seed in SEEDS {
            let first = fs.crash(seed);
            let expected = image(&first);
            assert_eq!(image(&first.crash(seed + 1)), expected, "seed {seed}");
        }
    }

    #[test]
    fn a_seed_names_one_image() {
        let run = || {
            let fs = SimFs::new();
            fs.create_dir_all(path("/a/b")).unwrap();
            let file = create(&fs, "/a/f", &[1; 10_000]);
            file.sync_data().unwrap();
            fs.sync_dir(path("/")).unwrap();
            write(&*file, &[2; 10_000], 5_000).unwrap();
            fs.rename(path("/a/f"), path("/a/b/f")).unwrap();
            create(&fs, "/a/f", b"x");
            fs
        };
        let images: Vec<_> = SEEDS.map(|seed| image(&run().crash(seed))).collect();
        assert!(SEEDS.zip(&images).all(|(seed, found)| image(&run().crash(seed)) == *found));
        assert!(images.into_iter().collect::<BTreeSet<_>>().len() > 20);
    }
}

mod names {
    use super::*;

    /// The sets of files that the power cuts of all seeds leave.
    fn outcomes(fs: &SimFs) -> BTreeSet<Vec<String>> {
        let names = |fs: SimFs| image(&fs).iter().map(|(path, _)| path.display().to_string()).collect();
        SEEDS.map(|seed| names(fs.crash(seed))).collect()
    }

    fn sets(sets: &[&[&str]]) -> BTreeSet<Vec<String>> {
        sets.iter().map(|names| names.iter().map(|&name| name.to_owned()).collect()).collect()
    }

    #[test]
    fn a_name_may_vanish_until_its_directory_is_synced_even_when_the_file_was() {
        let fs = SimFs::new();
        create(&fs, "/f", b"abc").sync_data().unwrap();
        assert_eq!(outcomes(&fs), sets(&[&[], &["/f"]]));
        let fs = fs.kill();
        fs.sync_dir(path("/")).unwrap();
        assert_eq!(outcomes(&fs), sets(&[&["/f"]]));
    }

    #[test]
    fn changes_of_one_directory_are_lost_from_some_moment_on() {
        let fs = SimFs::new();
        create(&fs, "/a", b"");
        create(&fs, "/b", b"");
        fs.remove_file(path("/a")).unwrap();
        assert_eq!(outcomes(&fs), sets(&[&[], &["/a"], &["/a", "/b"], &["/b"]]));
    }

    #[test]
    fn changes_of_two_directories_are_lost_independently() {
        let fs = SimFs::new();
        fs.create_dir_all(path("/p")).unwrap();
        fs.create_dir_all(path("/q")).unwrap();
        fs.sync_dir(path("/")).unwrap();
        create(&fs, "/p/f", b"");
        create(&fs, "/q/f", b"");
        assert_eq!(outcomes(&fs), sets(&[&[], &["/p/f"], &["/q/f"], &["/p/f", "/q/f"]]));
    }

    #[test]
    fn a_new_directory_takes_its_synced_files_along_when_it_vanishes() {
        let fs = SimFs::new();
        fs.create_dir_all(path("/new")).unwrap();
        create(&fs, "/new/f", b"abc").sync_data().unwrap();
        fs.sync_dir(path("/new")).unwrap();
        assert_eq!(outcomes(&fs), sets(&[&[], &["/new/f"]]));
    }

    #[test]
    fn a_removed_name_may_come_back_with_its_content_until_the_directory_is_synced() {
        let (fs, file) = disk_with(b"abc");
        drop(file);
        fs.remove_file(path("/f")).unwrap();
        assert_eq!(outcomes(&fs), sets(&[&[], &["/f"]]));
        let back = SEEDS.map(|seed| fs.crash(seed)).find(|fs| !fs.paths().is_empty()).unwrap();
        assert_eq!(back.read_image(path("/f")).unwrap(), b"abc");
        assert_eq!(fs.disk.lock().free_bytes() - back.disk.lock().free_bytes(), 4096, "it takes space again");
        let fs = fs.kill();
        fs.sync_dir(path("/")).unwrap();
        assert_eq!(outcomes(&fs), sets(&[&[]]));
    }

    #[test]
    fn a_lost_rename_leaves_the_old_content_under_the_old_name() {
        let (fs, _) = disk_with(b"old");
        create(&fs, "/f.tmp", b"new").sync_data().unwrap();
        fs.sync_dir(path("/")).unwrap();
        fs.rename(path("/f.tmp"), path("/f")).unwrap();
        let found: BTreeSet<_> = SEEDS.map(|seed| image(&fs.crash(seed))).collect();
        let (file, temporary) = (PathBuf::from("/f"), PathBuf::from("/f.tmp"));
        let lost = vec![(file.clone(), b"old".to_vec()), (temporary, b"new".to_vec())];
        assert_eq!(found, BTreeSet::from([lost, vec![(file, b"new".to_vec())]]));
    }

    #[test]
    fn a_rename_between_directories_happens_in_both_or_in_none() {
        let fs = SimFs::new();
        fs.write_image(path("/p/f"), b"").unwrap();
        fs.write_image(path("/q/g"), b"").unwrap();
        create(&fs, "/q/h", b"");
        fs.rename(path("/p/f"), path("/q/f")).unwrap();
        create(&fs, "/p/i", b"");
        let expected: [&[&str]; 4] = [
            &["/p/f", "/q/g"],
            &["/p/f", "/q/g", "/q/h"],
            &["/q/f", "/q/g", "/q/h"],
            &["/p/i", "/q/f", "/q/g", "/q/h"],
        ];
        assert_eq!(outcomes(&fs), sets(&expected));
        for synced in ["/p", "/q"] {
            let fs = fs.kill();
            fs.sync_dir(path(synced)).unwrap();
            for name in ["/q/f", "/q/h"] {
                let kept = outcomes(&fs).iter().all(|names| names.contains(&name.to_owned()));
                assert!(kept, "{name} after a sync of {synced}");
            }
        }
    }

    #[test]
    fn a_replaced_file_is_old_or_new_at_every_moment_the_power_is_cut() {
        let last = {
            let (fs, file) = disk_with(b"old");
            drop(file);
            replace_file(&fs, path("/f"), &[b'n'; 5_000]).unwrap();
            assert_eq!(super::outcomes(&fs).into_iter().collect::<BTreeSet<_>>().len(), 1);
            fs.operations()
        };
        for number in 1..=last {
            let (fs, file) = disk_with(b"old");
            drop(file);
            fs.fail_from(fs.operations() + number, Fault::PowerCut);
            let done = replace_file(&fs, path("/f"), &[b'n'; 5_000]).is_ok();
            for (seed, found) in SEEDS.zip(super::outcomes(&fs)) {
                let allowed = found == [b'n'; 5_000] || (!done && found == b"old");
                assert!(allowed, "power cut at operation {number}, seed {seed}: {:?}", fs.history());
            }
        }
    }

    #[test]
    fn a_directory_may_be_found_half_removed() {
        let fs = SimFs::new();
        for name in ["/d/a", "/d/b", "/d/c"] {
            fs.write_image(path(name), b"").unwrap();
        }
        fs.remove_dir_all(path("/d")).unwrap();
        let expected: [&[&str]; 4] = [&["/d/a", "/d/b", "/d/c"], &["/d/b", "/d/c"], &["/d/c"], &[]];
        assert_eq!(outcomes(&fs), sets(&expected));
    }

    #[test]
    fn what_no_name_and_no_handle_leads_to_is_forgotten() {
        let fs = SimFs::new();
        fs.create_dir_all(path("/d")).unwrap();
        let file = create(&fs, "/d/f", &[1; 10_000]);
        fs.remove_dir_all(path("/d")).unwrap();
        assert_eq!(file.len().unwrap(), 10_000);
        drop(file);
        fs.sync_dir(path("/")).unwrap();
        drop(create(&fs, "/g", b""));
        let debug = format!("{:?}", fs.disk.lock());
        assert_eq!(debug.matches("FileNode").count(), 1);
        assert_eq!(debug.matches("DirNode").count(), 1);
        assert_eq!(debug.matches("Change {").count(), 1);
    }
}

mod processes {
    use super::*;

    #[test]
    fn a_killed_process_leaves_all_it_wrote_still_unsynced_and_no_lock() {
        let fs = SimFs::new();
        let held = fs.lock(path("/LOCK")).unwrap();
        create(&fs, "/f", b"abc");
        let next = fs.kill();
        assert_eq!(image(&next), image(&fs));
        next.lock(path("/LOCK")).unwrap();
        let names: BTreeSet<_> = SEEDS.map(|seed| next.crash(seed).paths().len()).collect();
        assert_eq!(names, BTreeSet::from([0, 1, 2]));
        drop(held);
    }

    #[test]
    fn a_file_without_a_name_dies_with_its_process() {
        let (fs, file) = disk_with(b"abc");
        fs.remove_file(path("/f")).unwrap();
        fs.set_capacity(1 << 20);
        assert_eq!(fs.free_bytes(path("/")).unwrap(), (1 << 20) - 4096);
        assert_eq!(fs.kill().free_bytes(path("/")).unwrap(), 1 << 20);
        drop(file);
    }

    #[test]
    fn old_handles_fail_and_cannot_reach_the_new_image() {
        for next in [|fs: &SimFs| fs.crash(1), |fs: &SimFs| fs.kill()] {
            let (fs, file) = disk_with(b"abc");
            let image = next(&fs);
            assert_io_error(write(&*file, b"late", 0));
            assert_io_error(file.sync_data());
            assert_io_error(file.len());
            assert_io_error(fs.open(path("/f"), OpenMode::Read, 0));
            fs.heal();
            assert_io_error(fs.list(path("/")));
            assert_eq!(image.read_image(path("/f")).unwrap(), b"abc");
            assert_eq!(image.operations(), 0);
        }
    }
}

mod faults {
    use super::*;

    #[test]
    fn after_a_failed_sync_the_next_one_succeeds_without_the_lost_pages() {
        for fault in [Fault::Eio, Fault::Enospc] {
            let (fs, file) = disk_with(&[1; 8192]);
            write(&*file, &[2; 8192], 0).unwrap();
            fs.fail_nth(fs.operations() + 1, fault);
            file.sync_data().unwrap_err();
            write(&*file, &[3; 10], 4096).unwrap();
            file.sync_data().unwrap();
            assert_eq!(file.slice(0..4096).unwrap(), [2; 4096][..], "memory still shows what the disk lacks");
            let mut expected = [vec![1; 4096], vec![3; 10]].concat();
            expected.resize(8192, 2);
            assert!(outcomes(&fs).iter().all(|found| *found == expected), "a page written again is saved whole");
        }
    }

    #[test]
    fn a_lost_page_stays_lost_for_the_next_process_until_it_is_written_again() {
        let (fs, file) = disk_with(b"");
        write(&*file, &[2; 4096], 0).unwrap();
        fs.fail_nth(fs.operations() + 1, Fault::Eio);
        file.sync_data().unwrap_err();
        let fs = fs.kill();
        let file = fs.open(path("/f"), OpenMode::Write, 0).unwrap();
        assert_eq!(file.slice(0..4096).unwrap(), [2; 4096][..]);
        file.sync_data().unwrap();
        assert!(outcomes(&fs.kill()).iter().all(|found| *found == [0; 4096]));
        let fs = fs.kill();
        let file = fs.open(path("/f"), OpenMode::Write, 0).unwrap();
        write(&*file, &[2; 4096], 0).unwrap();
        file.sync_data().unwrap();
        assert!(outcomes(&fs).iter().all(|found| *found == [2; 4096]));
    }

    #[test]
    fn an_interrupted_sync_loses_nothing() {
        let (fs, file) = disk_with(b"");
        write(&*file, b"abc", 0).unwrap();
        fs.fail_nth(fs.operations() + 1, Fault::Interrupted);
        assert_eq!(kind(file.sync_data()), io::ErrorKind::Interrupted);
        file.sync_data().unwrap();
        assert!(outcomes(&fs).iter().all(|found| found == b"abc"));
    }

    #[test]
    fn a_short_write_leaves_its_first_half() {
        let (fs, file) = disk_with(b"......");
        fs.fail_nth(fs.operations() + 1, Fault::ShortWriteThenEio);
        assert_io_error(write(&*file, b"abcd", 1));
        assert_eq!(fs.read_image(path("/f")).unwrap(), b".ab...");
        write(&*file, b"abcd", 1).unwrap();
        assert_eq!(fs.read_image(path("/f")).unwrap(), b".abcd.");
    }

    /// Every operation once.
    fn script(fs: &SimFs) -> io::Result<()> {
        fs.create_dir_all(path("/a/b"))?;
        let _lock = fs.lock(path("/LOCK"))?;
        let file = fs.open(path("/a/f"), OpenMode::CreateNew, 0)?;
        file.reserve(10_000)?;
        write(&*file, b"abcdef", 0)?;
        file.truncate(6)?;
        file.sync_data()?;
        fs.sync_dir(path("/a"))?;
        fs.rename(path("/a/f"), path("/a/b/f"))?;
        let file = fs.open(path("/a/b/f"), OpenMode::Read, 0)?;
        file.read_exact_at(&mut [0; 6], 0)?;
        file.slice(0..file.len()?)?;
        file.modified()?;
        fs.free_bytes(path("/"))?;
        fs.open(path("/a/g"), OpenMode::CreateNew, 0)?;
        fs.remove_file(path("/a/g"))?;
        fs.remove_dir_all(path("/a"))
    }

    fn scripted(plan: impl Fn(&SimFs)) -> (SimFs, io::Result<()>) {
        let fs = SimFs::new();
        plan(&fs);
        let result = script(&fs);
        (fs, result)
    }

    fn calls(fs: &SimFs) -> Vec<Call> {
        fs.history().into_iter().map(|operation| operation.call).collect()
    }

    #[test]
    fn every_operation_of_a_run_can_be_the_one_that_fails() {
        let (whole, result) = scripted(|_| {});
        result.unwrap();
        let all = calls(&whole);
        assert_eq!(all.len() as u64, whole.operations());
        let faults = [Fault::Eio, Fault::ShortWriteThenEio, Fault::Interrupted, Fault::PowerCut];
        for (number, fault) in (1..=whole.operations()).flat_map(|number| faults.map(|fault| (number, fault))) {
            let (fs, result) = scripted(|fs| fs.fail_nth(number, fault));
            let error = io::Error::from(fault);
            assert_eq!(result.unwrap_err().raw_os_error(), error.raw_os_error(), "{fault:?} at {number}");
            assert_eq!(fs.operations(), number, "the script stopped at its first error");
            assert_eq!(calls(&fs), all[..number as usize]);
        }
        let (_, result) = scripted(|fs| fs.fail_nth(whole.operations() + 1, Fault::Eio));
        result.unwrap();
    }

    #[test]
    fn a_full_disk_fails_only_what_takes_space() {
        let (whole, _) = scripted(|_| {});
        let failing = (1..=whole.operations()).filter(|&number| {
            let (_, result) = scripted(|fs| fs.fail_nth(number, Fault::Enospc));
            result.is_err_and(|error| kind::<()>(Err(error)) == io::ErrorKind::StorageFull)
        });
        let failing: Vec<_> = failing.map(|number| calls(&whole)[number as usize - 1]).collect();
        let expected = [
            Call::CreateDirAll,
            Call::Lock,
            Call::CreateNew,
            Call::Reserve,
            Call::WriteAt,
            Call::Truncate,
            Call::SyncData,
            Call::Rename,
            Call::CreateNew,
        ];
        assert_eq!(failing, expected);
    }

    #[test]
    fn a_lasting_fault_fails_until_it_is_healed() {
        let (fs, file) = disk_with(b"abc");
        fs.fail_from(fs.operations() + 2, Fault::Eio);
        file.len().unwrap();
        for _ in 0..3 {
            assert_io_error(file.len());
        }
        fs.heal();
        file.len().unwrap();
    }

    #[test]
    fn the_history_names_the_last_operations() {
        let (fs, file) = disk_with(b"abc");
        for _ in 0..100 {
            file.len().unwrap();
        }
        let history = fs.history();
        assert_eq!(history.len(), 64);
        assert_eq!(history[63].to_string(), "101 Len /f");
    }
}

mod space {
    use super::*;

    #[test]
    fn a_reservation_beyond_the_capacity_changes_nothing() {
        let (fs, file) = disk_with(b"abc");
        fs.set_capacity(3 * 4096);
        assert_eq!(kind(file.reserve(3 * 4096 + 1)), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 3);
        file.reserve(3 * 4096).unwrap();
        assert_eq!(fs.free_bytes(path("/")).unwrap(), 0);
        write(&*file, &[1; 3 * 4096], 0).unwrap();
    }

    #[test]
    fn a_write_beyond_the_capacity_leaves_what_fitted() {
        let (fs, file) = disk_with(b"abc");
        fs.set_capacity(2 * 4096);
        assert_eq!(kind(write(&*file, &[1; 10_000], 3)), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 2 * 4096);
        assert_eq!(file.slice(3..8192).unwrap(), [1; 8189][..]);
        assert_eq!(kind(write(&*file, b"x", 100_000)), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 2 * 4096);
    }

    #[test]
    fn space_comes_back_by_cutting_and_by_removing_the_last_name_and_handle() {
        let fs = SimFs::new();
        fs.set_capacity(10 * 4096);
        let file = create(&fs, "/f", &[1; 8 * 4096]);
        let free_pages = || fs.free_bytes(path("/")).unwrap() / 4096;
        assert_eq!(free_pages(), 2);
        file.truncate(4096).unwrap();
        assert_eq!(free_pages(), 9);
        fs.remove_file(path("/f")).unwrap();
        assert_eq!(free_pages(), 9);
        drop(file);
        assert_eq!(free_pages(), 10);
        drop(create(&fs, "/g", b"closed, but named"));
        assert_eq!(free_pages(), 9);
    }

    #[test]
    fn positions_that_no_file_has_are_errors() {
        let (_, file) = disk_with(b"abc");
        assert_eq!(kind(write(&*file, b"ab", u64::MAX)), io::ErrorKind::InvalidInput);
        assert_eq!(kind(write(&*file, b"ab", i64::MAX as u64)), io::ErrorKind::InvalidInput);
        assert_eq!(kind(file.truncate(u64::MAX)), io::ErrorKind::InvalidInput);
        assert_eq!(kind(file.reserve(u64::MAX)), io::ErrorKind::StorageFull);
    }
}

mod helpers {
    use super::*;

    #[test]
    fn bytes_that_cannot_be_read_take_no_others_with_them() {
        let (fs, file) = disk_with(&[7; 10_000]);
        fs.set_unreadable(path("/f"), Some(4_096..8_192)).unwrap();
        let reads = |fs: &SimFs, from: u64, to: u64| {
            let file = fs.open(path("/f"), OpenMode::Read, 0).unwrap();
            let (sliced, mut buf) = (file.slice(from..to), vec![0; (to - from) as usize]);
            let read = file.read_exact_at(&mut buf, from);
            assert_eq!(sliced.is_ok(), read.is_ok());
            sliced.map(|_| ()).map_err(|cause| Errno::from_io_error(&cause).unwrap())
        };
        let check = |fs: &SimFs| {
            assert_eq!((reads(fs, 0, 4_096), reads(fs, 8_192, 10_000)), (Ok(()), Ok(())));
            assert_eq!((reads(fs, 0, 4_097), reads(fs, 8_191, 9_000)), (Err(Errno::IO), Err(Errno::IO)));
        };
        check(&fs);
        let images = [fs.kill(), fs.crash(1)];
        drop(file);
        for fs in images {
            check(&fs);
            fs.set_unreadable(path("/f"), None).unwrap();
            assert_eq!(reads(&fs, 0, 10_000), Ok(()));
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_and_survives() {
        let (fs, _) = disk_with(&[0; 5_000]);
        fs.flip(path("/f"), 4_999, 3).unwrap();
        for bytes in [fs.read_image(path("/f")).unwrap(), fs.crash(1).read_image(path("/f")).unwrap()] {
            assert_eq!(bytes[4_999], 8);
            assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 1);
        }
        assert_eq!(kind(fs.flip(path("/f"), 5_000, 0)), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_image_written_is_durable_with_its_name() {
        let fs = SimFs::new();
        fs.create_dir_all(path("/a")).unwrap();
        fs.write_image(path("/a/b/f"), b"first, longer").unwrap();
        fs.write_image(path("/a/b/f"), b"second").unwrap();
        let expected = vec![(PathBuf::from("/a/b/f"), b"second".to_vec())];
        for seed in SEEDS {
            assert_eq!(image(&fs.crash(seed)), expected, "seed {seed}");
        }
        assert_eq!(kind(fs.write_image(path("/a/b"), b"")), io::ErrorKind::IsADirectory);
        assert_eq!(kind(fs.read_image(path("/a/c"))), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_clock_stamps_changes_and_stands_still_by_itself() {
        let (fs, file) = disk_with(b"abc");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(file.modified().unwrap(), at(0));
        let changes: [&dyn Fn() -> io::Result<()>; 3] =
            [&|| write(&*file, b"x", 0), &|| file.reserve(10), &|| file.truncate(2)];
        for (second, change) in (1..).zip(changes) {
            fs.set_now(at(second));
            change().unwrap();
            assert_eq!(file.modified().unwrap(), at(second));
        }
        fs.set_now(at(9));
        file.sync_data().unwrap();
        assert_eq!(fs.crash(0).open(path("/f"), OpenMode::Read, 0).unwrap().modified().unwrap(), at(3));
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        let fs = SimFs::new();
        for bad in ["..", "/..", "/a/../b"] {
            assert_eq!(kind(fs.create_dir_all(path(bad))), io::ErrorKind::InvalidInput);
        }
        assert_eq!(kind(fs.open(path("/"), OpenMode::CreateNew, 0)), io::ErrorKind::InvalidInput);
    }
}

mod lies {
    use super::*;

    #[test]
    fn a_sync_that_is_only_claimed_saves_nothing_on_this_disk_and_its_images() {
        let (fs, file) = disk_with(b"old");
        fs.tell(Lie::FileSyncs("log"));
        let log = create(&fs, "/x.log", b"log");
        write(&*file, b"new", 0).unwrap();
        for synced in [&file, &log] {
            synced.sync_data().unwrap();
        }
        fs.sync_dir(path("/")).unwrap();
        let lost =
            |fs: &SimFs| SEEDS.filter(|&seed| fs.crash(seed).read_image(path("/x.log")).unwrap() != b"log").count();
        assert!(outcomes(&fs).iter().all(|found| found == b"new"), "other files are synced");
        assert!(lost(&fs) > 20);
        let next = fs.kill();
        next.open(path("/x.log"), OpenMode::Write, 0).unwrap().sync_data().unwrap();
        assert!(lost(&next) > 20, "the habit stays");
    }

    #[test]
    fn names_may_vanish_when_the_syncs_of_directories_are_only_claimed() {
        let fs = SimFs::new();
        fs.tell(Lie::DirSyncs);
        create(&fs, "/f", b"").sync_data().unwrap();
        fs.sync_dir(path("/")).unwrap();
        assert!(SEEDS.filter(|&seed| image(&fs.crash(seed)).is_empty()).count() > 20);
    }
}
