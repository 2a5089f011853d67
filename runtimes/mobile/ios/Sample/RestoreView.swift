import Clusir
import SwiftUI

/// Shows a picture and a button that restores it with the model in the app's bundle.
struct RestoreView: View {
    @State var image: CGImage
    @State private var status = "Restore"
    @State private var busy = false

    var body: some View {
        VStack {
            Image(decorative: image, scale: 1).resizable().scaledToFit()
            Button(status) { Task.detached { await run() } }.disabled(busy)
        }
    }

    /// Core ML runs the tiles where the bundle holds model.mlmodelc and model.json, else ONNX Runtime.
    private func opened() throws -> Clusir {
        if let package = Bundle.main.url(forResource: "model", withExtension: "mlmodelc"),
           let description = Bundle.main.url(forResource: "model", withExtension: "json") {
            return try Clusir(description: String(contentsOf: description, encoding: .utf8), run: CoreMlRunner(package: package).run)
        }
        guard let path = Bundle.main.path(forResource: "model.tile", ofType: "ort") else { throw CocoaError(.fileNoSuchFile) }
        return try Clusir(path: path)
    }

    private func run() async {
        await MainActor.run { busy = true }
        do {
            let (width, height) = (image.width, image.height)
            var pixels = [UInt8](repeating: 0, count: width * height * 4)
            let space = CGColorSpace(name: CGColorSpace.sRGB)!
            let layout = CGImageAlphaInfo.noneSkipLast.rawValue
            CGContext(data: &pixels, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * 4, space: space,
                      bitmapInfo: layout)!.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            var restored = try opened().restore(pixels, width: width, height: height, channels: 4) { done, total in
                Task { @MainActor in status = "tile \(done) of \(total)" }
                return true
            }
            let result = CGContext(data: &restored, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * 4,
                                   space: space, bitmapInfo: layout)!.makeImage()!
            await MainActor.run { image = result; status = "Done" }
        } catch {
            await MainActor.run { status = "\(error)" }
        }
        await MainActor.run { busy = false }
    }
}
