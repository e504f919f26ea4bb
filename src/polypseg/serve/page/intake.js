// What was dropped or chosen, sorted into frames and videos.

const VIDEOS = new Set(
  ("mp4 m4v mov mkv webm avi mpg mpeg ts m2ts mts vob wmv asf flv ogv mxf 3gp h264 264 h265 265 hevc y4m").split(" "),
);
const IMAGES = new Set("jpg jpeg png bmp tif tiff webp dcm dicom".split(" "));

const suffix = (name) => (name.includes(".") ? name.split(".").pop().toLowerCase() : "");

export const isVideo = (file) => file.type.startsWith("video/") || VIDEOS.has(suffix(file.name));

const naturally = new Intl.Collator("en", { numeric: true });

// {files, leftOut}. found: [{file, path}]; path is empty for a file that was named itself. Those are all kept, so that the
// service says what it thinks of them; from folders only frames and videos are, and no masks.
export function sort(found) {
  const wanted = ({ file, path }) => {
    if (!path) return true;
    const folders = path.toLowerCase().split("/").slice(0, -1);
    return !file.name.startsWith(".") && !folders.includes("masks") && (IMAGES.has(suffix(file.name)) || isVideo(file));
  };
  const kept = found.filter(wanted);
  kept.sort((one, other) => naturally.compare(one.path || one.file.name, other.path || other.file.name));
  return { files: kept.map(({ file }) => file), leftOut: found.length - kept.length };
}

export const chosen = (input) => [...input.files].map((file) => ({ file, path: file.webkitRelativePath }));

// Everything in a drop, folders with all that is in them. The browser forgets the drop when its event is over, so the
// entries are asked for before the first wait.
export async function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => ({ entry: item.webkitGetAsEntry(), file: item.getAsFile() }));
  const found = await Promise.all(entries.map(({ entry, file }) => (entry?.isDirectory ? walk(entry) : [{ file, path: "" }])));
  return found.flat();
}

async function walk(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
    if (!some.length) break;
    entries.push(...some);
  }
  const found = await Promise.all(
    entries.map(async (entry) => {
      if (entry.isDirectory) return walk(entry);
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      return [{ file, path: entry.fullPath.slice(1) }];
    }),
  );
  return found.flat();
}
