/** Files on their way to the blob store: announced, then sent to the address that the reply names. */

import { problemOfStatus, Unreachable } from "./problems.js";

/** Of the whole upload; a phone on a slow network has time for a large picture. */
const UPLOAD_DEADLINE_MS = 300_000;

/** Upload a file; resolves with its blob id. `onProgress` gets the share that is done, 0…1. */
export async function upload(calls, file, onProgress) {
  const body = { name: file.name, type: file.type, size: file.size };
  const made = await calls.call("POST", "/v1/blobs", { body });
  const { method, url, headers } = made.upload;
  await new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells no progress
    request.open(method, new URL(url, `${calls.url}/`));
    request.timeout = UPLOAD_DEADLINE_MS;
    for (const [name, value] of Object.entries(headers ?? {})) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => total && onProgress?.(loaded / total);
    request.onload = () =>
      request.status < 300 ? resolve() : reject(problemOfStatus(request.status));
    request.onerror = request.ontimeout = () => reject(new Unreachable("the upload broke"));
    request.send(file);
  });
  return made.blob_id;
}
